"""The rivals are trained on what they see when they draft, and learn."""

import pathlib

import pytest
import torch

import sparrow
from sparrow.drafters.protocol import Pending, Prompt
from sparrow.drafters.text import catch_up, grow
from sparrow.drafters.visual import VisualDrafter
from sparrow.targets.adapter import Prefill, Target
from sparrow.targets.teacher import teacher_states
from sparrow.training import stages as training
from sparrow.training.config import ConfigError
from sparrow.training.initial import new_drafter
from sparrow.training.passes import Passes
from sparrow.training.recipe import Recipe
from sparrow.training.sequences import collate, sequence, stored
from sparrow.tree import TreeConfig
from tests.drafters.visual_cases import RIVALS, VISUAL, random_drafter
from tests.training.cases import RandomClips, log, settings
from tests.videos import sample_inputs


def decoded(drafter, teacher, prompt: int, chunks) -> tuple[torch.Tensor, torch.Tensor]:
    """Through the operators: the loop's begin, then catch-ups in chunks. The outputs at the answer's tokens [n, E], and
    those of each next token with the output before as its state [n, E], a tree's second level.
    """
    states, given = teacher.states[drafter.config.hidden_layer][None], teacher.states[drafter.config.visual_layer][None]
    tokens, end = teacher.tokens[None], prompt + 1 + sum(chunks)
    prefill = Prefill(
        torch.zeros(1, 300), states[:, :prompt], torch.zeros(1, 1), teacher.position[None, :prompt], given[:, :prompt]
    )
    text = teacher.is_text[None, :prompt]
    draft = VisualDrafter(drafter).begin(Prompt(tokens[:, :prompt], text, prefill, tokens[:, prompt], None, 64, None))
    cache, outs, deeper = draft.cache, [], []

    def step(pending, last):
        out, position = catch_up(drafter, pending, cache)
        outs.append(out[0])
        own, first = drafter.reuse(out, cache.summary).flatten(0, 1), torch.zeros(1, 1, dtype=torch.int32)

        def below(token):
            return drafter.extend(token, first, own, position, cache.keys, cache.values, cache.lengths, tree_start=0)

        deeper.append(below(tokens[:, last + 1 : last + 2])[0])
        chain = grow(drafter, tokens[:, last], out, position, cache, TreeConfig.chain(2)).tokens
        assert torch.equal(drafter.propose(below(chain[:, 1:2]), 1)[1][..., 0], chain[:, 2:])

    step(draft.pending, prompt)
    at = prompt + 1
    for n in chunks:
        true_rows = cache.lengths.clone()
        for last in range(at, at + n):  # each row's output; the last time the whole chunk
            cache.lengths.copy_(true_rows)
            rows = torch.arange(at - 1, last, dtype=torch.int32)[None]
            count = torch.tensor([last + 1 - at], dtype=torch.int32)
            step(Pending(tokens[:, at : last + 1], rows, states[0], rows.long(), count), last)
        at += n
    assert at == end
    return torch.cat(outs), torch.cat(deeper)


EAGLE3 = {"layer": "eagle3", "visual": "states", "positions": "sequence"}


@pytest.mark.parametrize("rival", [*VISUAL, "EAGLE-3"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_training_forward_equals_decoding(tiny, family, rival):
    """A padded batch of one and two videos: outputs at the answer, of both passes, are those of decoding."""
    target = Target(tiny(family))
    more = {"seed": 1, **EAGLE3} if rival == "EAGLE-3" else {}
    drafter = (
        sparrow.SparrowDrafter.from_target(target, **more) if more else random_drafter(target, rival, hidden_norm=True)
    )
    layer = drafter.config.hidden_layer
    visual_layer = drafter.config.seen_layer
    g, made, teachers = torch.Generator().manual_seed(2), [], []
    for videos in (1, 2):
        inputs = sample_inputs(family, videos=videos, seed=videos)
        answer = torch.randint(3, 280, (9,), generator=g)
        teacher = teacher_states(target, inputs, answer, [layer, drafter.config.visual_layer])
        made.append(sequence(stored(teacher, 9, (layer,), visual_layer, bool(more)), "sequence", "before", None))
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
    "EAGLE-3": (
        {"visual_layer": 0, "mtp_depth": 1, "feature": 0.0},
        {**EAGLE3, "hidden_layer": 1, "fused_layers": [2, 3], "own_head": True, "hidden_norm": False},
    ),
    "IVSB without VATA": ({"visual_layer": 2, "mtp_depth": 0}, {"visual": "rows", "positions": "sequence"}),
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
    assert drafter.config.seen_layer == recipe["visual_layer"]
    start = new_drafter(Target(model), config, [])
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
    "recipe", [{"visual": False, "visual_layer": 0}, {"visual_layer": 0, "visual_positions": "same"}]
)
def test_training_refuses_other_rows_than_decoding_has(tmp_path, recipe):
    with pytest.raises(ConfigError, match=r"drafter.visual=rows needs recipe.visual=true and visual_positions=before"):
        settings(tmp_path, recipe=recipe, drafter=RIVALS["MSD"])
