"""MSD, MSD + VATA and ViSpec: lossless, the rows they may have and no others, trained as they decode."""

import pathlib

import pytest
import torch

import sparrow
from sparrow.compressor import visual_blocks
from sparrow.decode import DecodeState
from sparrow.draft import Pending, catch_up, grow
from sparrow.rivals import VisualDrafter
from sparrow.sampling import Sampler, SamplingRules
from sparrow.targets.adapter import Prefill, Target
from sparrow.targets.teacher import teacher_states
from sparrow.training import drafter as training
from sparrow.training.config import ConfigError
from sparrow.training.passes import Passes
from sparrow.training.recipe import Recipe
from sparrow.training.sequences import collate, sequence, stored
from sparrow.tree import TreeConfig
from tests.drafters import ScriptedDrafter
from tests.test_draft_state import full_states
from tests.training_cases import RandomClips, log, settings
from tests.videos import sample_inputs

SHAPE = TreeConfig(15, 5, 3)
RIVALS = {
    "text-only": {},
    "MSD": {"visual": "embeddings", "positions": "sequence"},
    "MSD + VATA": {"visual": "none", "positions": "sequence"},
    "ViSpec": {"visual": "compressed", "positions": "sequence"},
}
VISUAL = ["MSD", "MSD + VATA", "ViSpec"]
NEW = 30
NO_MARKS = {"suppress_tokens": [290, 291, 292, 293], "eos_token_id": None, "max_new_tokens": NEW}


def random_drafter(target: Target, rival: str, **more) -> sparrow.SparrowDrafter:
    """A random one; its fusion layer is random, too, as after training."""
    drafter = sparrow.SparrowDrafter.from_target(target, seed=1, **RIVALS[rival], **more)
    if rival == "ViSpec":
        g = torch.Generator().manual_seed(5)
        fusion = drafter.compressor.fusion
        fusion.weight.copy_(fusion.weight + 0.3 * torch.randn(fusion.weight.shape, generator=g))
        fusion.bias.copy_(torch.randn(fusion.bias.shape, generator=g))
    return drafter


def is_text(target: Target, inputs) -> torch.Tensor:
    return ~torch.isin(inputs["input_ids"], torch.tensor(sorted(target.visual_tokens())))


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
    given = full_states(target.model, inputs, sequence_ids, 0)[0]
    inputs_, places, g, start = [], [], torch.zeros(drafter.config.hidden_size), 0
    for t in range(sequence_ids.shape[1]):
        if t >= prompt or text[0, t]:
            h = states[t - 1] if t else torch.zeros_like(states[0])
            if drafter.config.visual == "compressed":
                h = drafter.compressor.fusion(torch.cat([h, g]))
            x = drafter.fc(torch.cat([drafter.embedding[sequence_ids[0, t]], h]))
        elif drafter.config.visual == "embeddings":
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
    cache, text = led.state.draft, is_text(target, inputs)
    seen_of_video = {"MSD": int((~text).sum()), "MSD + VATA": 0, "ViSpec": videos}[rival]
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
        caches.append(led.state.draft)
    full, masked = caches
    text = torch.cat([is_text(target, inputs)[0], torch.ones(NEW, dtype=torch.bool)])[: int(full.lengths[0])]
    rows = int(masked.lengths[0])
    assert rows == int(text.sum()) < int(full.lengths[0])
    assert torch.equal(full.values[0, : len(text)][text], masked.values[0, :rows])
    assert torch.equal(full.keys[0, : len(text)][text], masked.keys[0, :rows])


def test_blocks():
    text = torch.tensor([[0, 0, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    want = [[1, 1, 0, 2, 0, 0, 3], [0, 0, 1, 1, 1, 0, 2], [0] * 7]
    assert visual_blocks(text).tolist() == want


def decoded(drafter, teacher, prompt: int, chunks) -> tuple[torch.Tensor, torch.Tensor]:
    """Through the operators: the loop's begin, then catch-ups in chunks. The outputs at the answer's tokens [n, E], and
    those of each next token with the output before as its state [n, E], a tree's second level.
    """
    states, given = teacher.states[drafter.config.hidden_layer][None], teacher.states[0][None]
    tokens, end = teacher.tokens[None], prompt + 1 + sum(chunks)
    prefill = Prefill(
        torch.zeros(1, 300), states[:, :prompt], torch.zeros(1, 1), teacher.position[None, :prompt], given[:, :prompt]
    )
    state = DecodeState(None, tokens[:, prompt], torch.tensor([prompt + 1]), None,
                        None, Sampler(SamplingRules(), tokens[:, :prompt], 300))  # fmt: skip
    VisualDrafter(drafter).begin(tokens[:, :prompt], teacher.is_text[None, :prompt], prefill, state, 64)
    cache, outs, deeper = state.draft, [], []

    def step(pending, last):
        out, position = catch_up(drafter, pending, cache)
        outs.append(out[0])
        own, first = drafter.reuse(out, cache.summary).flatten(0, 1), torch.zeros(1, 1, dtype=torch.int32)

        def below(token):
            return drafter.extend(token, first, own, position, cache.keys, cache.values, cache.lengths, tree_start=0)

        deeper.append(below(tokens[:, last + 1 : last + 2])[0])
        chain = grow(drafter, tokens[:, last], out, position, cache, TreeConfig.chain(2)).tokens
        assert torch.equal(drafter.propose(below(chain[:, 1:2]), 1)[1][..., 0], chain[:, 2:])

    step(state.pending, prompt)
    at = prompt + 1
    for n in chunks:
        true_rows = cache.lengths
        for last in range(at, at + n):  # each row's output; the last time the whole chunk
            cache.lengths = true_rows
            rows = torch.arange(at - 1, last, dtype=torch.int32)[None]
            count = torch.tensor([last + 1 - at], dtype=torch.int32)
            step(Pending(tokens[:, at : last + 1], rows, states[0], rows.long(), count), last)
        at += n
    assert at == end
    return torch.cat(outs), torch.cat(deeper)


@pytest.mark.parametrize("rival", VISUAL)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_training_forward_equals_decoding(tiny, family, rival):
    """A padded batch of one and two videos: outputs at the answer, of both passes, are those of decoding."""
    target = Target(tiny(family))
    drafter = random_drafter(target, rival, hidden_norm=True)
    layer = drafter.config.hidden_layer
    visual_layer = None if rival == "MSD + VATA" else 0
    g, made, teachers = torch.Generator().manual_seed(2), [], []
    for videos in (1, 2):
        inputs = sample_inputs(family, videos=videos, seed=videos)
        answer = torch.randint(3, 280, (9,), generator=g)
        teacher = teacher_states(target, inputs, answer, [layer, 0])
        made.append(sequence(stored(teacher, 9, (layer,), visual_layer), "sequence", "before", None))
        teachers.append((teacher, inputs["input_ids"].shape[1]))
    with torch.no_grad():
        outs = list(Passes(drafter, Recipe(mtp_depth=1, mtp_attention="tree")).outputs(collate(made)))
    for row, (teacher, prompt) in enumerate(teachers):
        first = int(teacher.is_text[:prompt].sum())
        true, deeper = decoded(drafter, teacher, prompt, (3, 4))
        torch.testing.assert_close(outs[0][row, first : first + 8], true, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(outs[1][row, first + 1 : first + 9], deeper, atol=2e-5, rtol=1e-4)


TRAINED = {
    "MSD": ({"visual_layer": 0, "mtp_depth": 0}, RIVALS["MSD"]),
    "ViSpec": ({"visual_layer": 0, "mtp_depth": 1}, {**RIVALS["ViSpec"], "grouped_heads": False}),
}


@pytest.mark.parametrize("rival", TRAINED)
def test_trains_and_drafts(tiny, greedy, tmp_path, rival):
    """A short run learns its clips: the loss falls, every weight has moved, live drafts are accepted, output exact."""
    model, clips = tiny("qwen2_5_vl"), RandomClips("qwen2_5_vl", 3, videos=2)
    recipe, shape = TRAINED[rival]
    config = settings(
        tmp_path, recipe=recipe, drafter=shape,
        optimisation={"steps": 80, "batch_rows": 250, "learning_rate": 5e-3, "clip_value": None, "save_every": 100},
    )  # fmt: skip
    folder = training.train(Target(model), clips, config)
    losses = [loss for (loss,) in log(config.run, "loss")]
    assert losses[-1] < 0.9 * losses[0]
    drafter = sparrow.SparrowDrafter.from_pretrained(pathlib.Path(folder))
    assert drafter.config.num_kv_heads == (4 if rival == "ViSpec" else 2)
    start = training.new_drafter(Target(model), config, [])
    moved = {k for k, v in drafter.state_dict().items() if not torch.equal(v, start.state_dict()[k])}
    assert moved >= set(start.state_dict()) - {"compressor.k_proj.bias"}  # a softmax does not feel its keys' bias
    rounds = []
    for clip in range(2):
        out = sparrow.generate(model, drafter, **clips.inputs(clip), max_new_tokens=16, tree=TreeConfig.chain(4))
        want = model.generate(**clips.inputs(clip), do_sample=False, max_new_tokens=16)
        assert torch.equal(out.sequences, want)
        rounds += out.stats.emitted
    assert sum(rounds) / len(rounds) > 1.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"visual": "all"}, "visual must be none, embeddings or compressed, got 'all'"),
        ({"visual": "embeddings"}, "visual=embeddings needs positions=sequence, got positions=text"),
        ({"visual": "compressed", "positions": "target"}, "visual=compressed needs positions=sequence"),
        ({"positions": "row"}, "positions must be text, sequence or target, got 'row'"),
    ],
)
def test_config_refuses(tiny, values, message):
    with pytest.raises(ValueError, match=message):
        sparrow.SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")), **values)


@pytest.mark.parametrize(
    "recipe", [{"visual": False, "visual_layer": 0}, {}, {"visual_layer": 0, "visual_positions": "same"}]
)
def test_training_refuses_other_rows_than_decoding_has(tmp_path, recipe):
    with pytest.raises(ConfigError, match=r"drafter.visual=embeddings needs recipe.visual=true, visual_layer=0 and"):
        settings(tmp_path, recipe=recipe, drafter=RIVALS["MSD"])


def test_load_refuses(tiny, tmp_path):
    random_drafter(Target(tiny("qwen2_5_vl")), "ViSpec").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unknown keys .* vision"):
        sparrow.SparrowDrafter.from_pretrained(tmp_path, vision="none")
    with pytest.raises(ValueError, match=r"weights .* do not fit"):
        sparrow.SparrowDrafter.from_pretrained(tmp_path, visual="none")
