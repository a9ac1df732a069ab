"""Greedy output is token-identical to transformers' own generate: families, trees, lengths, processors, stops."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import sparrow
from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.targets.adapter import Target
from sparrow.targets.positions import prompt_positions
from sparrow.tree import TreeConfig
from sparrow_ext.ops import kv_commit, tree_attention
from tests.decoding.scripted import ScriptedDrafter
from tests.videos import FAMILIES, sample_inputs

SHAPE = TreeConfig(total=15, depth=5, width=3)
RIGHT = {
    "always right": lambda r: 5,
    "always wrong": lambda r: 0,
    "right to depth r": lambda r: r % 6,
}


def check(got, want, prompt):
    """Same length, same tokens, and a text worth comparing."""
    assert got.shape == want.shape, (got[0, prompt:].tolist(), want[0, prompt:].tolist())
    assert torch.equal(got, want), (got[0, prompt:].tolist(), want[0, prompt:].tolist())


@pytest.mark.parametrize("script", RIGHT)
@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_scripted_acceptance(tiny, greedy, family, videos, script):
    model, inputs = tiny(family), sample_inputs(family, videos=videos)
    want = greedy(model, inputs, 40)
    out = sparrow.generate(
        model, ScriptedDrafter(want[0], RIGHT[script]), **inputs, max_new_tokens=40, eos_token_id=None, tree=SHAPE
    )
    check(out.sequences, want, inputs["input_ids"].shape[1])
    full = out.stats.accepted[:-1]  # the last round may run out of script
    if script == "always right":
        assert full and set(full) == {5}
    elif script == "always wrong":
        assert set(full) == {0} and out.stats.rounds == 39
    else:
        assert set(full) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(("videos", "images"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_images_and_videos(tiny, greedy, family, videos, images):
    """Images alone and between videos, as transformers has them, whoever drafts; image rows are no text."""
    model, inputs = tiny(family), sample_inputs(family, videos=videos, images=images)
    target, length = Target(model), inputs["input_ids"].shape[1]
    want = greedy(model, inputs, 24)
    scripted = ScriptedDrafter(want[0], lambda r: r % 6)
    drafters = [scripted, sparrow.SparrowDrafter.from_target(target), sparrow.SpecVLM(), None]
    for drafter in drafters:
        out = sparrow.generate(model, drafter, **inputs, max_new_tokens=24, eos_token_id=None)
        check(out.sequences, want, length)
        assert out.stats.visual_tokens == int((~target.is_text(inputs["input_ids"])).sum()) > 4 * images
    # another image, another text
    other = {k: -v if k == "pixel_values" else v for k, v in inputs.items()}
    assert not torch.equal(greedy(model, other, 24), want)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_images_numbered_as_in_training(tiny, greedy, family):
    """positions="reference": the rule's ids given to transformers itself."""
    model, inputs = tiny(family), sample_inputs(family, videos=2, images=3)
    ids = prompt_positions(Target(model), dict(inputs), "reference")
    want = greedy(model, {**inputs, "position_ids": ids}, 40)
    out = sparrow.generate(
        model, sparrow.SparrowDrafter.from_target(Target(model)), **inputs, max_new_tokens=40, eos_token_id=None,
        positions="reference",
    )  # fmt: skip
    check(out.sequences, want, inputs["input_ids"].shape[1])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("tree", ["30-4-8", "25-5-8", "1-1-1", "6-6-1", "90-6-12", "auto"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_random_drafter(tiny, greedy, family, tree, seed):
    model, inputs = tiny(family, seed), sample_inputs(family, seed=seed)
    want = greedy(model, inputs, 48)
    drafter = sparrow.SparrowDrafter.from_target(Target(model), seed=seed)
    out = sparrow.generate(model, drafter, **inputs, max_new_tokens=48, eos_token_id=None, tree=tree)
    check(out.sequences, want, inputs["input_ids"].shape[1])


@pytest.mark.parametrize("n", [1, 2, 3, 63, 200])
def test_lengths(tiny, greedy, n):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    want = greedy(model, inputs, n)
    out = sparrow.generate(
        model, ScriptedDrafter(want[0], lambda r: r % 6), **inputs, max_new_tokens=n, eos_token_id=None, tree=SHAPE
    )
    check(out.sequences, want, inputs["input_ids"].shape[1])
    assert out.stats.new_tokens == n == 1 + sum(out.stats.emitted)
    if n == 200:  # toy-proofing: the text is no short loop, and other weights say something else
        new = want[0, inputs["input_ids"].shape[1] :]
        assert new.unique().numel() >= 60
        other = greedy(tiny("qwen2_5_vl", 1), inputs, 20)
        assert not torch.equal(other[0, -20:], new[:20])


class NoTwice(LogitsProcessor):
    """Stateful: forbids the token it saw at its previous call; breaks if called out of order or too often."""

    def __init__(self):
        self.calls, self.last = 0, -1

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.last >= 0:
            scores = scores.clone()
            scores[:, self.last] = -torch.inf
        self.last = (int(input_ids[0, -1]) + self.calls) % scores.shape[-1]
        return scores


PROCESSORS = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "below one": {"repetition_penalty": 0.8},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "both": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    "suppress": {"suppress_tokens": list(range(40, 120))},
    "min_new_tokens": {"min_new_tokens": 8, "eos_token_id": list(range(0, 300, 7))},
    "bad words": {"bad_words_ids": [[5], [100, 101]]},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_processors(tiny, greedy, family, name):
    model, inputs, options = tiny(family), sample_inputs(family), PROCESSORS[name]
    want = greedy(model, inputs, 40, **options)
    for right in RIGHT.values():
        drafter = ScriptedDrafter(want[0], right)
        out = sparrow.generate(
            model, drafter, **inputs, max_new_tokens=40, tree=SHAPE, **{"eos_token_id": None, **options}
        )
        check(out.sequences, want, inputs["input_ids"].shape[1])


def test_stateful_processor_is_called_once_per_token_in_order(tiny, greedy):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    theirs = NoTwice()
    want = greedy(model, inputs, 40, logits_processor=LogitsProcessorList([theirs]))
    stop = int(want[0, -7])
    for eos in (None, stop):
        theirs, ours = NoTwice(), NoTwice()
        want = greedy(model, inputs, 40, logits_processor=LogitsProcessorList([theirs]), eos_token_id=eos)
        out = sparrow.generate(
            model, ScriptedDrafter(want[0], lambda r: r % 6), **inputs, max_new_tokens=40, eos_token_id=eos, tree=SHAPE,
            logits_processor=LogitsProcessorList([ours]),
        )  # fmt: skip
        check(out.sequences, want, inputs["input_ids"].shape[1])
        assert (ours.calls, ours.last) == (theirs.calls, theirs.last)


@pytest.mark.parametrize("at", range(8, 16))
def test_end_of_sequence_inside_a_tree(tiny, greedy, at):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    prompt = inputs["input_ids"].shape[1]
    free = greedy(model, inputs, 40)
    eos = int(free[0, prompt + at])
    want = greedy(model, inputs, 40, eos_token_id=eos)
    out = sparrow.generate(
        model, ScriptedDrafter(free[0], lambda r: 5), **inputs, max_new_tokens=40, eos_token_id=eos, tree=SHAPE
    )
    check(out.sequences, want, prompt)
    assert out.past_key_values.get_seq_length() == want.shape[1] - 1


class StopAt(StoppingCriteria):
    def __init__(self, n):
        self.n, self.seen = n, []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.shape[1])
        return torch.full((1,), input_ids.shape[1] >= self.n)


def test_stopping_criteria_run_after_every_token(tiny, greedy):
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision")
    prompt = inputs["input_ids"].shape[1]
    theirs, ours = StopAt(prompt + 13), StopAt(prompt + 13)
    want = greedy(model, inputs, 40, stopping_criteria=StoppingCriteriaList([theirs]))
    out = sparrow.generate(
        model, ScriptedDrafter(want[0], lambda r: 5), **inputs, max_new_tokens=40, eos_token_id=None, tree=SHAPE,
        stopping_criteria=StoppingCriteriaList([ours]),
    )  # fmt: skip
    check(out.sequences, want, prompt)
    assert ours.seen == theirs.seen


@pytest.mark.parametrize("where", ["argument", "generation config", "the model's own"])
def test_stop_strings(tiny, greedy, monkeypatch, where):
    tokenizer = build_tokenizer(vocab_size=300)
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision")
    prompt = inputs["input_ids"].shape[1]
    free = greedy(model, inputs, 40)
    stop = next(word for token in free[0, prompt + 6 :] if (word := tokenizer.decode([int(token)])).strip().isalnum())
    want = greedy(model, inputs, 40, stop_strings=[stop], tokenizer=tokenizer)
    assert prompt + 2 <= want.shape[1] < prompt + 40
    given = {"stop_strings": [stop], "max_new_tokens": 40, "eos_token_id": None}
    if where == "generation config":
        config = GenerationConfig(stop_strings=[stop], eos_token_id=None, pad_token_id=2, max_new_tokens=40)
        given = {"generation_config": config}
    elif where == "the model's own":
        monkeypatch.setattr(model.generation_config, "stop_strings", given.pop("stop_strings"))
    out = sparrow.generate(
        model, ScriptedDrafter(free[0], lambda r: 5), **inputs, tree=SHAPE, tokenizer=tokenizer, **given
    )
    check(out.sequences, want, prompt)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_generated_placeholder_is_text(tiny, greedy, family):
    """A target made to emit the video token: the token is text, whatever its id."""
    model, inputs = tiny(family), sample_inputs(family)
    video = int(inputs["input_ids"].mode().values)
    options = {"forced_eos_token_id": None, "sequence_bias": [[[video], 100.0]], "no_repeat_ngram_size": 3}
    want = greedy(model, inputs, 24, **options)
    assert (want[0, inputs["input_ids"].shape[1] :] == video).any()
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    out = sparrow.generate(model, drafter, **inputs, max_new_tokens=24, eos_token_id=None, **options)
    check(out.sequences, want, inputs["input_ids"].shape[1])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_reference_positions(tiny, family):
    from sparrow.targets.positions import prompt_positions

    model, inputs = tiny(family), sample_inputs(family, frames=32)
    ids = prompt_positions(Target(model), dict(inputs), "reference")
    want = model.generate(**inputs, position_ids=ids, do_sample=False, max_new_tokens=24, eos_token_id=None)
    out = sparrow.generate(
        model, ScriptedDrafter(want[0], lambda r: r % 6), **inputs, max_new_tokens=24, eos_token_id=None, tree=SHAPE,
        positions="reference",
    )  # fmt: skip
    check(out.sequences, want, inputs["input_ids"].shape[1])


def test_operators_run_in_every_round(tiny, greedy, monkeypatch):
    import sparrow_ext

    calls = {"tree_attention": 0, "kv_commit": 0}

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(sparrow_ext, "tree_attention", counted("tree_attention", tree_attention.tree_attention))
    monkeypatch.setattr(sparrow_ext, "kv_commit", counted("kv_commit", kv_commit.kv_commit))
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    out = sparrow.generate(
        model, sparrow.SparrowDrafter.from_target(Target(model)), **inputs, max_new_tokens=20, eos_token_id=None
    )
    assert calls == {"tree_attention": 4 * out.stats.rounds, "kv_commit": out.stats.rounds} and out.stats.rounds > 5


def test_a_corrupted_operator_is_noticed(tiny, monkeypatch):
    import sparrow_ext

    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    right = sparrow.compare(model, drafter, **inputs, max_new_tokens=40, eos_token_id=None)
    assert right.identical and right.lossless and right.match_rate == 1 and "identical: yes" in right.summary()

    def wrong(*args, **kwargs):
        out, lse = tree_attention.tree_attention(*args, **kwargs)
        return out * 1.05, lse

    monkeypatch.setattr(sparrow_ext, "tree_attention", wrong)
    result = sparrow.compare(model, drafter, **inputs, max_new_tokens=40, eos_token_id=None)
    assert not result.identical and not result.lossless and result.match_rate < 1
    assert "identical: no" in result.summary() and result.mismatches[0].top2_margin > 0
