"""Which words of an answer count, and of which class they are."""

import random
import re

import pytest

from sparrow.miniature.world.language import COUNTS, caption, converse
from sparrow.miniature.world.scene import COLOURS, KINDS, sample_scene
from sparrow.smollm2.words import NAMES, Tagger, closing
from tests.smollm2.cases import tokenizer


@pytest.fixture(scope="module")
def tagger():
    return Tagger(tokenizer())


def told(tagger, answer):
    """[(word, class)] of the words that count."""
    ids = tagger.tokenizer(answer)["input_ids"]
    classes = tagger.classes(answer)
    assert len(ids) == len(classes)
    return [(tagger.tokenizer.decode([i]).strip(), NAMES[c]) for i, c in zip(ids, classes, strict=True) if c >= 0]


def test_a_closing_names_shapes_again():
    """Before it, each shape of a description is named once, by its kind; in it, without "a"."""
    for seed in range(40):
        scene = sample_scene(random.Random(seed))
        text = caption(scene, random.Random(seed))
        end = closing(text)
        named = re.findall(rf"\b(?:{'|'.join(KINDS)})\b", text[:end])
        assert named == [shape.kind for shape in scene.shapes] and 0 < end < len(text)
        first = Tagger(tokenizer()).first(text)
        assert len(first) == len(tokenizer()(text)["input_ids"])
        assert tokenizer().decode(tokenizer()(text)["input_ids"][: sum(first)]).strip() == text[:end].strip()
    assert closing("There is nothing else.") == len("There is nothing else.")


def test_a_description(tagger):
    text = (
        "The clip lasts 7 seconds and shows two shapes on a dark blue background. A tiny red ring enters in the top "
        "left corner at second 3 and glides to the left. It turns white at second 5. At second 4, a large cyan cross "
        "shows up on the right; it moves up slowly. The red ring appears before the cyan cross."
    )
    assert told(tagger, text) == [
        ("two", "count"), ("tiny", "size"), ("red", "colour"), ("ring", "kind"), ("top", "place"), ("left", "place"),
        ("3", "second"), ("left", "way"), ("white", "colour"), ("5", "second"), ("4", "second"), ("large", "size"),
        ("cyan", "colour"), ("cross", "kind"), ("right", "place"), ("up", "way"), ("red", "colour"), ("ring", "kind"),
        ("before", "order"), ("cyan", "colour"), ("cross", "kind"),
    ]  # fmt: skip


def test_synonyms_mean_the_same_and_opposites_do_not(tagger):
    table = tagger.tables
    one = lambda word: tagger.tokenizer(" " + word)["input_ids"][0]  # noqa: E731
    size, place = NAMES.index("size"), NAMES.index("place")
    assert table[size, one("tiny")] == table[size, one("small")] != table[size, one("big")]
    assert table[place, one("top")] == table[place, one("upper")] != table[place, one("bottom")]
    assert table[size, one("red")] == -1


def test_every_content_word_of_many_answers_is_found(tagger):
    import random

    rng = random.Random(1)
    for _ in range(200):
        scene = sample_scene(rng)
        _, _, answer = converse(scene, rng, "describe")
        found = told(tagger, answer)
        words = answer.replace(".", " ").replace(",", " ").replace(";", " ").split()
        assert sum(c == "kind" for _, c in found) == sum(w in KINDS for w in words)
        grounds = sum(a == "dark" or b in ("black", "gray") for a, b in zip(["", *words], words, strict=False))
        assert sum(c == "colour" for _, c in found) == sum(w in COLOURS for w in words) - ("dark" in words)
        assert grounds <= 1
        assert sum(c == "count" for _, c in found) == sum(w in COUNTS for w in words)


def test_a_word_of_several_tokens_is_refused():
    from sparrow.miniature.model import miniature_tokenizer

    with pytest.raises(ValueError, match="one token"):
        _ = Tagger(miniature_tokenizer(["nothing of the kind"])).tables
