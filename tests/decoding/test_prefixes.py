"""The prefix store: same tokens with it and without; what it takes over, what it does not, and what it forgets."""

import pytest
import torch

import sparrow
from sparrow.decoding.prefixes import Head
from sparrow.targets.adapter import Target
from sparrow.targets.pixels import visuals_of
from sparrow.targets.tiny import tiny_target
from tests.videos import FAMILIES, sample_inputs

NEW = 10


def question(inputs, seed=0, length=7):
    """The inputs with other last words."""
    ids = inputs["input_ids"].clone()
    ids[0, -length:] = torch.randint(3, 280, (length,), generator=torch.Generator().manual_seed(seed))
    return {**inputs, "input_ids": ids}


def decode(model, drafter, inputs, store=None, **options):
    return sparrow.generate(model, drafter, **inputs, max_new_tokens=NEW, eos_token_id=None, prefixes=store, **options)


@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("drafter", ["none", "text", "target positions", "sequence", "specvlm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_video_other_questions(tiny, greedy, family, drafter, videos):
    model, store = tiny(family), sparrow.PrefixStore(1 << 24)
    options = {"text": {}, "target positions": {"positions": "target"}, "sequence": {"positions": "sequence"}}
    made = {"none": None, "specvlm": sparrow.SpecVLM(keep=0.5)}
    if drafter in options:
        made[drafter] = sparrow.SparrowDrafter.from_target(Target(model), **options[drafter])
    inputs, taken = sample_inputs(family, videos=videos), []
    for seed in range(3):
        asked = question(inputs, seed)
        out = decode(model, made[drafter], asked, store)
        assert torch.equal(out.sequences, greedy(model, asked, NEW))
        taken.append(out.stats.reused_tokens)
    end = int((inputs["input_ids"][0] == 291).nonzero()[-1]) + 1
    assert taken == [0, end, end] and len(store) == 1
    assert store.nbytes >= end * 4 * 2 * 2 * 16 * 4


def test_other_pixels_are_another_video(tiny, greedy):
    """One value of one of two videos: only the other, if it comes first, is taken over."""
    model, store, inputs = tiny("qwen2_5_vl"), sparrow.PrefixStore(1 << 24), sample_inputs("qwen2_5_vl", videos=2)
    decode(model, None, inputs, store)
    ids, starts = inputs["input_ids"][0], []
    for row, taken in ((0, 5), (40, 18)):
        other = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"].clone()}
        other["pixel_values_videos"][row, 3] += 0.5
        out = decode(model, None, other, store)
        assert torch.equal(out.sequences, greedy(model, other, NEW))
        starts.append(out.stats.reused_tokens)
        assert abs(out.stats.reused_tokens - taken) <= 1
    assert int(ids[6]) == 291 and len(store) == 3


@pytest.mark.parametrize("what", ["word", "grid", "seconds", "order"])
def test_other_beginnings(tiny, greedy, what):
    """An earlier word, another clock of the video, the same videos in another order."""
    model, store, inputs = tiny("qwen2_5_vl"), sparrow.PrefixStore(1 << 24), sample_inputs("qwen2_5_vl", videos=2)
    decode(model, None, inputs, store)
    other = {**inputs}
    if what == "word":
        other["input_ids"] = inputs["input_ids"].clone()
        other["input_ids"][0, 2] += 1
    elif what == "grid":
        other["video_grid_thw"] = torch.tensor([[1, 8, 4], [2, 4, 4]])
    elif what == "seconds":
        other["second_per_grid_ts"] = torch.tensor([2.0, 1.0])
    else:
        half = len(inputs["pixel_values_videos"]) // 2
        pixels = inputs["pixel_values_videos"]
        other["pixel_values_videos"] = torch.cat([pixels[half:], pixels[:half]])
    out = decode(model, None, other, store)
    assert torch.equal(out.sequences, greedy(model, other, NEW)) and out.stats.reused_tokens <= 5


def test_sampled_and_numbered(tiny):
    model, store, inputs = tiny("qwen2_5_vl"), sparrow.PrefixStore(1 << 24), sample_inputs("qwen2_5_vl")
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    for seed in range(2):
        options = {"do_sample": True, "temperature": 1.2, "seed": seed, "positions": "reference"}
        asked = question(inputs, seed)
        out, want = (decode(model, drafter, asked, given, **options) for given in (store, None))
        assert torch.equal(out.sequences, want.sequences)
    assert out.stats.reused_tokens > 10
    assert decode(model, drafter, asked, store).stats.reused_tokens == 0  # numbered in another way


def test_it_is_bounded_and_forgets_the_oldest(tiny):
    model = tiny("llava_onevision")
    one, two, three = (sample_inputs("llava_onevision", seed=seed) for seed in range(3))
    first = sparrow.PrefixStore(1 << 24)
    decode(model, None, one, first)
    store = sparrow.PrefixStore(2 * first.nbytes)
    for inputs in (one, two, one, three):
        decode(model, None, inputs, store)
    assert len(store) == 2 and store.nbytes <= store.max_bytes
    assert [decode(model, None, inputs, store).stats.reused_tokens > 0 for inputs in (three, one, two)] == [
        True, True, False,
    ]  # fmt: skip
    small = sparrow.PrefixStore(first.nbytes - 1)
    decode(model, None, one, small)
    assert len(small) == 0 == small.nbytes
    store.clear()
    assert len(store) == 0 and decode(model, None, three, store).stats.reused_tokens == 0


def test_what_the_caller_does_to_a_returned_cache(tiny, greedy):
    model, store, inputs = tiny("internvl"), sparrow.PrefixStore(1 << 24), sample_inputs("internvl")
    for _ in range(2):
        out = decode(model, None, inputs, store)
        assert torch.equal(out.sequences, greedy(model, inputs, NEW))
        out.cache.buffer.fill_(7.0)
    assert out.stats.reused_tokens > 0


def test_whose_rows(tiny):
    """Another model, another drafter, changed weights: nothing is taken over. Plain decoding and SpecVLM share."""
    model, inputs, store = tiny_target("qwen2_5_vl", seed=5), sample_inputs("qwen2_5_vl"), sparrow.PrefixStore(1 << 24)
    drafters = [sparrow.SparrowDrafter.from_target(Target(model), seed=seed) for seed in range(2)]
    taken = lambda m, d: decode(m, d, inputs, store).stats.reused_tokens > 0  # noqa: E731
    order = (None, sparrow.SpecVLM(), *drafters, *drafters)
    assert [taken(model, d) for d in order] == [False, True, False, False, True, True]
    assert not taken(tiny("qwen2_5_vl"), None) and taken(model, None)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    assert not taken(model, None)
    del model, drafters
    assert taken(tiny("qwen2_5_vl"), None) and len(store) == 1


def test_text_and_padding_are_run_as_they_are(tiny, greedy):
    """Without a video nothing is kept; a prompt with hidden tokens is not looked up."""
    model, store = tiny("qwen2_5_vl"), sparrow.PrefixStore(1 << 24)
    text = sample_inputs("qwen2_5_vl", videos=0)
    assert torch.equal(decode(model, None, text, store).sequences, greedy(model, text, NEW)) and len(store) == 0
    inputs = sample_inputs("qwen2_5_vl")
    ids = inputs["input_ids"].clone()
    ids[0, 1] = 2
    padded = {k: v for k, v in inputs.items() if k != "attention_mask"} | {"input_ids": ids}
    for _ in range(2):
        out = decode(model, None, padded, store)
        assert torch.equal(out.sequences, greedy(model, padded, NEW)) and out.stats.reused_tokens == 0


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None])
def test_sizes_that_are_refused(size):
    with pytest.raises(ValueError, match="max_bytes must be a positive integer, got"):
        sparrow.PrefixStore(size)


# --- heads and videos by themselves ---


def test_common_beginnings():
    """A video that differs, or that is not whole on both sides, ends the common part where it starts."""

    def head(ids, *visuals):
        return Head(torch.tensor(ids), torch.arange(len(ids)), visuals)

    ids = [5, 9, 9, 6, 7, 9, 8]
    mine = head(ids, (1, 3, b"a"), (5, 6, b"b"))
    cases = [
        (head(ids, (1, 3, b"a"), (5, 6, b"b")), 7, 7), (head(ids, (1, 3, b"a"), (5, 6, b"b")), 6, 6),
        (head(ids, (1, 3, b"x"), (5, 6, b"b")), 7, 1), (head(ids, (1, 3, b"a"), (5, 6, b"x")), 7, 5),
        (head(ids[:4], (1, 3, b"a")), 7, 4), (head(ids[:2], (1, 3, b"a")), 7, 1), (head(ids), 7, 1),
        (head([5, 9, 9, 1], (1, 3, b"a")), 7, 3), (head([4, 9, 9, 1], (1, 3, b"a")), 7, 0),
        (mine, 2, 1), (mine, 0, 0), (Head(torch.tensor(ids), torch.arange(7) + 1, mine.visuals), 7, 0),
        (Head(torch.tensor(ids), torch.arange(7).expand(3, 7), mine.visuals), 7, 0),
    ]  # fmt: skip
    for other, most, want in cases:
        assert mine.common(other, most) == other.common(mine, most) == want


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_of_a_prompt(tiny, family):
    target, inputs = Target(tiny(family)), sample_inputs(family, videos=2)
    found, ids = visuals_of(target, inputs["input_ids"], inputs), inputs["input_ids"][0]
    assert len(found) == (8 if family == "internvl" else 2)
    assert sum(int((ids[v.first : v.end] == 291).sum()) for v in found) == int((ids == 291).sum())
    assert all(ids[v.first] == ids[v.end - 1] == 291 for v in found) and len({v.digest() for v in found}) == len(found)
    name = "pixel_values" if family == "internvl" else "pixel_values_videos"
    assert torch.equal(torch.cat([v.inputs[name] for v in found]), inputs[name])
    assert visuals_of(target, inputs["input_ids"], {}) is None
    assert visuals_of(target, inputs["input_ids"][:, :-30], inputs) is None or family.startswith("llava")
