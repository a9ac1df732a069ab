"""MSD, MSD + VATA and ViSpec: lossless, with the rows they may have and no others."""

import pytest
import torch

import sparrow
from sparrow.drafters.compressor import visual_blocks
from sparrow.drafters.visual import VisualDrafter, prompt_cache
from sparrow.evaluation.questions import question
from sparrow.evaluation.tape import record, replay
from sparrow.miniature.model import SETTINGS
from sparrow.targets.adapter import Prefill, Target
from sparrow.tree import TreeConfig
from tests.decoding.scripted import ScriptedDrafter
from tests.drafters.test_draft_state import full_states
from tests.drafters.visual_cases import RIVALS, VISUAL, is_text, random_drafter
from tests.pairs import miniature_pair
from tests.videos import sample_inputs

SHAPE = TreeConfig(15, 5, 3)
NEW = 30
NO_MARKS = {"suppress_tokens": [290, 291, 292, 293], "eos_token_id": None, "max_new_tokens": NEW}


class Led(VisualDrafter):
    """Drafts, then proposes what the script says: paths of every length are accepted. Keeps state and length."""

    def __init__(self, drafter, truth):
        super().__init__(drafter)
        self.script = ScriptedDrafter(truth, lambda r: r % 6)

    def draft(self, state, shape):
        assert super().draft(state, shape).tokens[0, 0] == state.root
        self.state, self.length = state, int(state.length[0])
        return self.script.draft(state, shape)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_lossless(tiny, greedy, family, videos, rival):
    model, inputs = tiny(family), sample_inputs(family, videos=videos)
    drafter = random_drafter(Target(model), rival)
    out = sparrow.generate(model, drafter, **inputs, max_new_tokens=40, eos_token_id=None, tree=TreeConfig(30, 4, 8))
    assert torch.equal(out.sequences, greedy(model, inputs, 40))


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "llava_onevision"])
def test_lossless_with_images(tiny, greedy, family, rival):
    model, inputs = tiny(family), sample_inputs(family, videos=1, images=2)
    drafter = random_drafter(Target(model), rival)
    out = sparrow.generate(model, drafter, **inputs, max_new_tokens=20, eos_token_id=None, tree=TreeConfig(30, 4, 8))
    assert torch.equal(out.sequences, greedy(model, inputs, 20))


@pytest.mark.parametrize("rival", VISUAL)
def test_sampled_output_is_that_of_plain_decoding(tiny, rival):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl", videos=2)
    options = {"do_sample": True, "temperature": 0.8, "seed": 3, "max_new_tokens": 30, "eos_token_id": None}
    want = sparrow.generate(model, None, **inputs, **options).sequences
    assert torch.equal(
        sparrow.generate(model, random_drafter(Target(model), rival), **inputs, **options).sequences, want
    )


def one_shot(drafter, target, inputs, sequence_ids, rows):
    """Positions, keys and values of the whole sequence's first rows, place by place in plain PyTorch."""
    prompt, text = inputs["input_ids"].shape[1], is_text(target, inputs)
    states = full_states(target.model, inputs, sequence_ids, drafter.config.hidden_layer)[0]
    given = full_states(target.model, inputs, sequence_ids, drafter.config.visual_layer)[0]
    inputs_, places, g, start = [], [], torch.zeros(drafter.config.hidden_size), 0
    for t in range(sequence_ids.shape[1]):
        if t >= prompt or text[0, t]:
            h = states[t - 1] if t else torch.zeros_like(states[0])
            if drafter.config.visual == "compressed":
                h = drafter.compressor.fusion(torch.cat([h, g]))
            x = drafter.fc(torch.cat([drafter.embedding[sequence_ids[0, t]], h]))
        elif drafter.config.visual == "rows":
            x = given[t]
        else:
            start = t if t == 0 or text[0, t - 1] else start
            if drafter.config.visual == "none" or not text[0, t + 1]:
                continue
            x, g = slow_compression(drafter, given[start : t + 1])
        inputs_.append(x)
        places.append(t)
    x, numbers = torch.stack(inputs_)[None, :rows], torch.tensor(places)[None, :rows]
    _, keys, values = drafter.project(x, numbers)
    return keys[0].transpose(0, 1), values[0].transpose(0, 1)


def slow_compression(drafter, rows):
    """The block's token and global vector, query by query, head by head."""
    c, d = drafter.compressor, drafter.config.head_dim
    answers = []
    for query in c.queries:
        heads = []
        for head, q in enumerate(query):
            part = slice(head * d, head * d + d)
            weights = (c.k_proj(rows)[:, part] @ q / d**0.5).softmax(0)
            heads.append(weights @ c.v_proj(rows)[:, part])
        answers.append(c.o_proj(torch.cat(heads)))
    return answers


@pytest.mark.parametrize("rival", VISUAL)
@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_cache_rows(tiny, greedy, family, videos, rival):
    """After any rounds: the rows of a one-shot prefill with true states, and as many as the method says."""
    model, inputs = tiny(family), sample_inputs(family, videos=videos)
    target = Target(model)
    drafter = random_drafter(target, rival)
    truth = model.generate(**inputs, do_sample=False, **NO_MARKS)
    led = Led(drafter, truth[0])
    out = sparrow.generate(model, led, **inputs, **NO_MARKS, tree=SHAPE)
    assert torch.equal(out.sequences, truth) and set(out.stats.accepted) >= {0, 1, 2, 3, 4, 5}
    cache, text = led.state.draft.cache, is_text(target, inputs)
    seen_of_video = {"rows": int((~text).sum()), "none": 0, "compressed": videos}[drafter.config.visual]
    generated = led.length - inputs["input_ids"].shape[1]
    rows = int(cache.lengths[0])
    assert rows == int(text.sum()) + seen_of_video + generated
    keys, values = one_shot(drafter, target, inputs, truth, rows)
    torch.testing.assert_close(cache.values[0, :rows], values, atol=3e-4, rtol=1e-3)
    torch.testing.assert_close(cache.keys[0, :rows], keys, atol=3e-4, rtol=1e-3)


def test_vata_is_a_mask_over_msd(tiny, tmp_path):
    """The same weights without visual rows: the text rows are the same, bit by bit."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl", videos=2)
    target = Target(model)
    random_drafter(target, "MSD").save_pretrained(tmp_path)
    caches = []
    for overrides in ({}, {"visual": "none"}):
        drafter = sparrow.SparrowDrafter.from_pretrained(tmp_path, **overrides)
        drafter.attach(target)
        led = Led(drafter, sparrow.generate(model, None, **inputs, **NO_MARKS).sequences[0])
        sparrow.generate(model, led, **inputs, **NO_MARKS, tree=SHAPE)
        caches.append(led.state.draft.cache)
    full, masked = caches
    text = torch.cat([is_text(target, inputs)[0], torch.ones(NEW, dtype=torch.bool)])[: int(full.lengths[0])]
    rows = int(masked.lengths[0])
    assert rows == int(text.sum()) < int(full.lengths[0])
    assert torch.equal(full.values[0, : len(text)][text], masked.values[0, :rows])
    assert torch.equal(full.keys[0, : len(text)][text], masked.keys[0, :rows])


@pytest.mark.parametrize("rival", VISUAL)
def test_ragged_prompts(tiny, rival):
    """Prompts of one length with videos of different lengths at different places: each row as it is alone."""
    target = Target(tiny("qwen2_5_vl"))
    drafter = random_drafter(target, rival, hidden_norm=True)
    g = torch.Generator().manual_seed(0)
    text = torch.ones(3, 20, dtype=torch.bool)
    text[0, 2:9] = text[0, 12:15] = text[1, 0:4] = False
    prompts = torch.randint(3, 280, (3, 20), generator=g)
    hidden, given = torch.randn(2, 3, 20, 64, generator=g)

    def cache_of(rows):
        prefill = Prefill(torch.zeros(1, 300), hidden[rows], torch.zeros(1, 1), torch.zeros(1, 20), given[rows])
        return prompt_cache(drafter, prompts[rows], text[rows], prefill, 4)

    together = cache_of(slice(0, 3))
    blocks, visual = {"rows": [10, 4, 0], "none": [0, 0, 0], "compressed": [2, 1, 0]}[drafter.config.visual], [10, 4, 0]
    assert together.lengths.tolist() == [20 - v + b for v, b in zip(visual, blocks, strict=True)]
    for row, n in enumerate(together.lengths.tolist()):
        alone = cache_of(slice(row, row + 1))
        assert int(alone.lengths[0]) == n and int(alone.skipped[0]) == int(together.skipped[row]) == 20 - n
        torch.testing.assert_close(together.keys[row, :n], alone.keys[0, :n])
        torch.testing.assert_close(together.values[row, :n], alone.values[0, :n])
        if rival == "ViSpec":
            torch.testing.assert_close(together.summary[row], alone.summary[0])
            assert bool(alone.summary.any()) == (row < 2)


@pytest.mark.parametrize("rival", VISUAL)
def test_bfloat16(tiny, rival):
    model, inputs = tiny("qwen2_5_vl", 0, None, torch.bfloat16), sample_inputs("qwen2_5_vl", videos=2)
    inputs = {k: v.to(torch.bfloat16) if k.startswith("pixel") else v for k, v in inputs.items()}
    drafter = random_drafter(Target(model), rival)
    out = sparrow.generate(model, drafter, **inputs, max_new_tokens=12, eos_token_id=None)
    assert out.stats.new_tokens == 12 and drafter.fc.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("rival", RIVALS)
def test_replay_is_the_live_loop(rival):
    """On a target that is nearly a bigram model, with a drafter that guesses often: the same tokens in every round."""
    model, tokenizer, good = miniature_pair()
    target = Target(model)
    drafter = random_drafter(target, rival)
    drafter.load_state_dict(drafter.state_dict() | good.state_dict())
    if rival == "ViSpec":  # states come through, with some of the global vector
        drafter.compressor.fusion.weight[:, :64] = torch.eye(64)
        drafter.compressor.fusion.bias.zero_()
    lengths = set()
    for number in range(2):
        inputs = question(SETTINGS, tokenizer, 64, number, split="dev").inputs
        options = {"max_new_tokens": 30, "eos_token_id": None}
        tape = record(model, inputs, drafter.config.state_layers, options, 0, drafter.config.seen_layer)
        live = sparrow.generate(model, drafter, **inputs, **options, tree="25-5-8")
        got = replay(tape, drafter, TreeConfig.parse("25-5-8"))
        assert got == live.stats.emitted
        lengths |= set(got)
    assert len(lengths) >= 3
    if rival in ("MSD", "ViSpec"):
        with pytest.raises(ValueError, match="needs a tape recorded with its visual_layer"):
            replay(record(model, inputs, drafter.config.state_layers, options, 0), drafter, SHAPE)


def test_blocks():
    text = torch.tensor([[0, 0, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    want = [[1, 1, 0, 2, 0, 0, 3], [0, 0, 1, 1, 1, 0, 2], [0] * 7]
    assert visual_blocks(text).tolist() == want


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"visual": "all"}, "visual must be one of none, rows, states, compressed, got 'all'"),
        ({"visual": "rows"}, "visual=rows needs positions=sequence, got positions=text"),
        ({"visual": "compressed", "positions": "target"}, "visual=compressed needs positions=sequence"),
        ({"positions": "row"}, "positions must be one of text, sequence, target, got 'row'"),
    ],
)
def test_config_refuses(tiny, values, message):
    with pytest.raises(ValueError, match=message):
        sparrow.SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")), **values)


def test_load_refuses(tiny, tmp_path):
    random_drafter(Target(tiny("qwen2_5_vl")), "ViSpec").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unknown keys .* vision"):
        sparrow.SparrowDrafter.from_pretrained(tmp_path, vision="none")
    with pytest.raises(ValueError, match=r"weights .* do not fit"):
        sparrow.SparrowDrafter.from_pretrained(tmp_path, visual="rows")


@pytest.mark.parametrize("fc_bias", [False, True])
def test_vispec_without_its_video(tiny, greedy, tmp_path, fc_bias):
    """visual="none" makes of it a drafter that reads states fused with a global vector of zero."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    target = Target(model)
    seeing = sparrow.SparrowDrafter.from_target(
        target, visual="compressed", positions="sequence", hidden_norm=True, fc_bias=fc_bias
    )
    with torch.no_grad():
        for parameter in (seeing.compressor.fusion.weight, seeing.compressor.fusion.bias, seeing.fc.bias):
            if parameter is not None:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    seeing.save_pretrained(tmp_path / "d")
    blind = sparrow.SparrowDrafter.from_pretrained(tmp_path / "d", visual="none")
    assert not any(name.startswith("compressor") for name in blind.state_dict())
    e, h = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = seeing.fc(torch.cat([e, seeing.reuse(h, torch.zeros(1, 64))], dim=-1))
        got = blind.fc(torch.cat([e, blind.reuse(h)], dim=-1))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    out = sparrow.generate(model, blind, **inputs, max_new_tokens=12, eos_token_id=None)
    assert torch.equal(out.sequences, greedy(model, inputs, 12))
