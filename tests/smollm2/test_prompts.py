"""The generator of instructions: seeded, without repetition, split by topic."""

import pytest

from sparrow.smollm2.prompts import FORMS, TOPICS, prompts, topics


def test_no_topic_is_in_two_splits():
    named = [topic for split in TOPICS for topic in topics(split)]
    assert len(named) == len(set(named)) and all(t == " ".join(t.split()) and t for t in named)


def test_thousands_of_different_prompts():
    everything = [p for split in TOPICS for p in prompts(split, sum(map(len, FORMS.values())) * len(topics(split)))]
    assert len(everything) > 4000 and len(set(everything)) == len(everything)


def test_the_seed_gives_them():
    assert prompts("dev", 50) == prompts("dev", 50) != prompts("dev", 50, seed=1)
    assert prompts("dev", 50)[:20] == prompts("dev", 20)


def test_kinds_take_turns():
    first = prompts("train", len(FORMS))
    for prompt, forms in zip(first, FORMS.values(), strict=True):
        assert any(prompt == form.format(topic) for form in forms for topic in topics("train"))


def test_what_cannot_be_had():
    with pytest.raises(ValueError, match="split must be"):
        prompts("validation", 1)
    with pytest.raises(ValueError, match=r"count must lie in \[0,"):
        prompts("dev", 10**6)
