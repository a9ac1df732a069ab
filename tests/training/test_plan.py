"""`sparrow train drafter --plan`: its figures, and that it writes nothing."""

import json

import pytest
import torch

from sparrow.cli import main as cli
from sparrow.cli import plan as cli_plan
from sparrow.targets.adapter import Target
from sparrow.training.initial import new_drafter
from sparrow.training.passes import Passes
from sparrow.training.plan import Lengths, activations, needs, on_meta, shaped
from tests.pairs import write_miniature_pair
from tests.training.cases import settings

LENGTHS = Lengths(text=20, visual=30, answer=10)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("drafter", "recipe"),
    [
        ({}, {"mtp_depth": 3, "mtp_attention": "tree"}),
        ({"visual": "rows", "positions": "sequence"}, {}),
        ({"layer": "eagle3", "own_head": True, "draft_vocab": 40, "fused_layers": [0, 1]}, {"visual": False}),
        ({"num_layers": 3}, {"mtp_depth": 2, "mtp_attention": "tree", "visual": False}),
    ],
)
def test_activations_are_those_of_a_real_pass(tiny, tmp_path, drafter, recipe, checkpointing):
    """What a pass without memory says is what a real one keeps, but for attention's own scratch."""
    config = settings(
        tmp_path, drafter=drafter, recipe={"feature": 0.0, **recipe},
        optimisation={"batch_rows": 130, "checkpointing": checkpointing},
    )  # fmt: skip
    answers = [type("A", (), {"ids": tuple(range(3, 60))})]
    real = new_drafter(Target(tiny("llava_onevision")), config, answers)
    sequences = 2 if config.recipe.visual else 4
    batch = shaped(real.config, sequences, LENGTHS, config.recipe.visual, torch.device("cpu"))
    own, kept = {p.data_ptr() for p in (*real.parameters(), real.embedding)}, {}

    def keep(value):
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes(), value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        outs = list(Passes(real, config.recipe, checkpointing).outputs(batch))
    want = sum(size for size, _ in kept.values()) + 3 * len(outs) * outs[0].nbytes
    assert activations(real.config, config, LENGTHS) == pytest.approx(want, rel=0.1)
    assert sum(p.numel() for p in on_meta(real.config, 300, config).parameters()) == sum(
        p.numel() for p in real.parameters()
    )


def test_what_is_written_is_what_was_said(tiny, tmp_path):
    """States on disk: text rows of the layers that are reused, visual rows where they are trained on."""
    target = Target(tiny("llava_onevision"))
    sizes = {}
    for visual in (False, True):
        config = settings(tmp_path, recipe={"visual": visual})
        drafter = new_drafter(target, config, []).config
        _, states, training = needs(config, target.config, 1000, drafter, 5, LENGTHS, 4)
        sizes[visual] = states.disk
        assert training.parts["target"] == 1000 and states.tokens == 5 * 60
    assert sizes == {False: 5 * 30 * 64 * 4, True: 5 * (30 + 30) * 64 * 4}


@pytest.fixture
def arguments(tmp_path):
    write_miniature_pair(tmp_path)
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps({"prompt": "word " * n}) + "\n" for n in (2, 9, 4)))
    more = [f"target={tmp_path / 'target'}", f"data.clips={tmp_path / 'clips.jsonl'}", f"run={tmp_path / 'run'}"]
    return ["train", "drafter", "--plan", *more, "data.validation=1", "answers.max_new_tokens=8",
            "optimisation.batch_rows=100"]  # fmt: skip


def test_plan(arguments, tmp_path, capsys):
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "3 clips" in told and "Everything fits." in told and "not measured" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("free_memory", ["training does not fit", "try optimisation.checkpointing=true", "batch_rows="]),
        ("free_disk", ["states does not fit", "of disk", "try states.cache=false"]),
    ],
)
def test_what_does_not_fit(arguments, capsys, monkeypatch, what, words):
    monkeypatch.setattr(cli_plan, what, lambda _: 2**10)
    assert cli.main([*arguments, "recipe.visual=false"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert all(word in told for word in words), told
    assert ("not measured" in told) == (what == "free_memory")
