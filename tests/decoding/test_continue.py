"""The returned cache goes on in transformers' generate, as a user would write it; prompts with padding tokens."""

import pytest
import torch

import sparrow
from sparrow.targets.adapter import MROPE_FAMILIES, Target
from sparrow.targets.positions import prompt_positions
from sparrow.targets.versions import cache_argument
from sparrow.tree import TreeConfig
from tests.decoding.scripted import ScriptedDrafter
from tests.videos import FAMILIES, sample_inputs

SHAPE = TreeConfig(15, 5, 3)
QUESTION = torch.tensor([[17, 18, 19, 20]])
PAD = 2  # the tiny models' pad_token_id


def longer(inputs, ids):
    """The whole conversation as inputs for a run from nothing."""
    made = dict(inputs, input_ids=ids, attention_mask=torch.ones_like(ids))
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        made["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, ids.shape[1] - types.shape[1])], dim=1)
    return made


def next_turn(model, sequences, cache, mask=None):
    """The second turn: the conversation so far, a question, the cache."""
    ids = torch.cat([sequences, QUESTION], dim=1)
    if mask is None:
        mask = torch.ones_like(ids[:, :0])
    mask = torch.cat([mask, torch.ones_like(ids[:, mask.shape[1] :])], dim=1)
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        **{cache_argument(model): cache},
    )


def conversation(model, greedy, family, videos):
    """Inputs and a long answer without placeholders: a run from nothing would take those for videos."""
    for seed in range(5):
        inputs = sample_inputs(family, videos=videos, seed=seed)
        truth = greedy(model, inputs, 30)
        new = truth[0, inputs["input_ids"].shape[1] :][:9]
        if not bool(((new >= 290) & (new <= 293)).any()):
            return inputs, truth
    raise AssertionError("every answer holds a placeholder")


@pytest.mark.parametrize("stop", ["one token", "length inside a round", "end of sequence inside a round"])
@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_next_turn(tiny, greedy, family, videos, stop):
    model = tiny(family)
    inputs, truth = conversation(model, greedy, family, videos)
    prompt, eos, new = inputs["input_ids"].shape[1], None, 30
    if stop.startswith("end"):
        eos = int(truth[0, prompt + 8])
    else:
        new = 1 if stop == "one token" else 9
    model.generate(**sample_inputs(family, videos=2 - videos), max_new_tokens=1)  # leaves another offset behind
    out = sparrow.generate(
        model, ScriptedDrafter(truth[0], lambda r: 5), **inputs, max_new_tokens=new, eos_token_id=eos, tree=SHAPE
    )
    assert torch.equal(out.sequences, truth[:, : out.sequences.shape[1]])
    assert stop == "one token" or out.stats.emitted[-1] < out.stats.accepted[-1] + 1  # the stop cuts a path
    got = next_turn(model, out.sequences, out.cache)
    whole = longer(inputs, torch.cat([out.sequences, QUESTION], dim=1))
    assert torch.equal(got, greedy(model, whole, 12))


@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("family", sorted(MROPE_FAMILIES))
def test_offset_is_what_transformers_leaves(tiny, greedy, family, videos):
    model, inputs = tiny(family), sample_inputs(family, videos=videos)
    greedy(model, inputs, 5)
    want = model.model.rope_deltas
    model.model.rope_deltas = None
    sparrow.generate(model, None, **inputs, max_new_tokens=5)
    assert torch.equal(model.model.rope_deltas, want) and bool(want.any()) == (videos > 0)
    other = sample_inputs(family, videos=2 - videos, seed=5)
    left = greedy(model, other, 12)  # one that starts anew does not care
    model.model.rope_deltas = None
    assert torch.equal(greedy(model, other, 12), left)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_goes_on_from_the_positions_given(tiny, family):
    """Where the caller numbers the prompt transformers leaves a stale offset; ours fits the numbers."""
    model, inputs = tiny(family), sample_inputs(family, frames=32)
    ids = prompt_positions(Target(model), dict(inputs), "reference")
    want = model.generate(**inputs, position_ids=ids, do_sample=False, max_new_tokens=24, eos_token_id=None)
    for given in ({"positions": "reference"}, {"position_ids": ids}):
        model.model.rope_deltas = None
        out = sparrow.generate(model, None, **inputs, **given, max_new_tokens=10, eos_token_id=None)
        rest = model.generate(
            input_ids=out.sequences, attention_mask=torch.ones_like(out.sequences), do_sample=False, max_new_tokens=14,
            eos_token_id=None, **{cache_argument(model): out.cache},
        )  # fmt: skip
        assert torch.equal(rest, want)


# --- padding tokens in a prompt ---


def padded(family, videos, where):
    """Inputs without a mask, and the mask transformers infers."""
    inputs = sample_inputs(family, videos=videos)
    del inputs["attention_mask"]
    ids = inputs["input_ids"].clone()
    ids[ids == PAD] = 3
    ids[0, {"front": [0, 1], "inside": [2, -5, -2], "end": [-1]}[where]] = PAD
    return dict(inputs, input_ids=ids), (ids != PAD).long()


@pytest.mark.parametrize("where", ["front", "inside", "end"])
@pytest.mark.parametrize("videos", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_tokens_in_the_prompt(tiny, greedy, family, videos, where):
    model, (inputs, mask) = tiny(family), padded(family, videos, where)
    want = greedy(model, inputs, 24)
    first = model.generate(
        **inputs, do_sample=False, max_new_tokens=24, eos_token_id=None, return_dict_in_generate=True
    )
    turn = next_turn(model, want, first[cache_argument(model)], mask)
    target = Target(model)
    visual = {"visual": "compressed", "positions": "sequence"}
    drafters = [None, ScriptedDrafter(want[0], lambda r: r % 6), sparrow.SpecVLM(keep=0.5)]
    drafters += [sparrow.SparrowDrafter.from_target(target, **o) for o in ({}, {"positions": "target"}, visual)]
    for drafter in drafters:
        tree = SHAPE if isinstance(drafter, ScriptedDrafter) else None
        out = sparrow.generate(model, drafter, **inputs, max_new_tokens=24, eos_token_id=None, tree=tree)
        assert torch.equal(out.sequences, want)
        assert torch.equal(next_turn(model, out.sequences, out.cache, mask), turn)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_drafter_does_not_meet_padding(tiny, family):
    """Tokens, states, kinds and positions of what the target sees, and its cache's rows."""
    model, (inputs, mask) = tiny(family), padded(family, 1, "inside")
    seen, prompts = mask[0].nonzero()[:, 0], []

    class Meets(ScriptedDrafter):
        hidden_layer, visual_layer = 0, 0

        def begin(self, prompt):
            prompts.append(prompt)
            self.rows = prompt.cache.get_seq_length()

    drafter = Meets(inputs["input_ids"][0], lambda r: 0)
    sparrow.generate(model, drafter, **inputs, max_new_tokens=2, eos_token_id=None, tree=SHAPE)
    (prompt,), target = prompts, Target(model)
    assert torch.equal(prompt.tokens, inputs["input_ids"][:, seen]) and drafter.rows == len(seen)
    assert torch.equal(prompt.is_text, target.is_text(inputs["input_ids"])[:, seen]) and not prompt.is_text.all()
    text = prompt.is_text[0]
    for states in (prompt.prefill.hidden, prompt.prefill.visual):  # layer 0: embeddings
        assert torch.equal(states[0, text], target.embedding[prompt.tokens[0, text]])
    numbers = prompt.prefill.text_position[0]
    assert numbers.shape == seen.shape and int(numbers[-1]) + 1 == int(prompt.prefill.next_position.flatten()[-1])


def test_padding_token_that_ends_too_is_text(tiny, greedy):
    """As in Qwen's configs: where pad_token_id also ends a sequence transformers masks nothing."""
    model, (inputs, mask) = tiny("qwen2_5_vl"), padded("qwen2_5_vl", 1, "inside")
    want = greedy(model, inputs, 12, eos_token_id=[PAD, 299])
    assert torch.equal(want, greedy(model, inputs, 12, eos_token_id=[PAD, 299], attention_mask=torch.ones_like(mask)))
    assert torch.equal(
        sparrow.generate(model, None, **inputs, max_new_tokens=12, eos_token_id=[PAD, 299]).sequences, want
    )


@pytest.mark.parametrize("width", ["whole", "one", "bool", "float", "wider"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_masks_of_ones(tiny, greedy, family, width):
    model, (inputs, mask) = tiny(family), padded(family, 0, "inside")
    ones = torch.ones_like(mask)
    masks = {"one": ones[:, :1], "bool": ones.bool(), "float": ones.float(), "wider": torch.ones(1, mask.shape[1] + 2)}
    inputs["attention_mask"] = masks.get(width, ones)
    want = greedy(model, inputs, 16)
    drafters = [None, ScriptedDrafter(want[0], lambda r: r % 6)]
    for positions in ("text", "target", "sequence"):
        drafters.append(sparrow.SparrowDrafter.from_target(Target(model), positions=positions))
    for drafter in drafters:
        tree = SHAPE if isinstance(drafter, ScriptedDrafter) else None
        out = sparrow.generate(model, drafter, **inputs, max_new_tokens=16, eos_token_id=None, tree=tree)
        assert torch.equal(out.sequences, want)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (
            [[5, 6, 7]],
            [[1, 0, 1]],
            r"may hide tokens at the left of a prompt only \(padding\), got \[1, 0, 1\] for sequence 0",
        ),
        ([[5, 6, 7]], [[1, 2, 3]], "attention_mask must hold zeros and ones, got 2 other values in 3"),
        ([[5, 6, 7]], [[1, 1]], r"attention_mask must be a tensor of shape \[1, 3\], as input_ids, got \[1, 2\]"),
        ([[5, 6, 7]], [1, 1, 1], r"attention_mask must be a tensor of shape \[1, 3\].* got \[3\]"),
        ([[5, 6, 7]], "ones", r"attention_mask must be a tensor of shape \[1, 3\].* got str"),
        ([[PAD, PAD]], None, r"input_ids must hold more than padding \(pad_token_id\), got \[\[2, 2\]\]"),
    ],
)
def test_masks_that_are_refused(tiny, ids, mask, message):
    mask = torch.tensor(mask) if isinstance(mask, list) else mask
    with pytest.raises(ValueError, match=message):
        sparrow.generate(tiny("qwen2_5_vl"), None, input_ids=torch.tensor(ids), attention_mask=mask, max_new_tokens=2)


def test_rows_set_aside_come_back(tiny):
    """Whatever is appended in between: the rows are in their places, as if they had been there."""
    cache = Target(tiny("llava_onevision")).new_cache(12)
    rows = torch.randn(4, 2, 1, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    for layer in range(4):
        cache.update(*rows[layer, ..., :6, :], layer)
    for places in ([0, 1], [2, 5], [4]):
        cache.set_aside(torch.isin(torch.arange(6), torch.tensor(places))[None])
        left = [i for i in range(6) if i not in places]
        assert cache.get_seq_length() == len(left) == int(cache.lengths)
        assert torch.equal(cache.buffer[..., : len(left), :], rows[..., left, :])
        cache.append_rows(rows[..., 6:, :])
        cache.put_back()
        assert cache.get_seq_length() == 9 == int(cache.lengths) and torch.equal(cache.buffer[..., :9, :], rows)
        cache.put_back()
        cache.set_length(6)
