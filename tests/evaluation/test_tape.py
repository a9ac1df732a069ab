"""What a drafter is given in the replay of a tape is what the live loop gives it: rows, states and their numbers."""

import pytest
import torch

import sparrow
from sparrow.drafters import text
from sparrow.evaluation import tape
from sparrow.evaluation.questions import question
from sparrow.evaluation.tape import model_hash
from sparrow.miniature.model import SETTINGS
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig
from tests.drafters.visual_cases import RIVALS, random_drafter
from tests.pairs import miniature_pair

TREE = "25-5-8"
KINDS = {**RIVALS, "the target's numbers": {"positions": "target"}}
KINDS["EAGLE-3"] = {"layer": "eagle3", "visual": "states", "positions": "sequence", "fused_layers": (3,)}


def caches(monkeypatch, module, run):
    """Keys and values of the drafter's rows after every catch-up of `run`, and what it returned."""
    kept, real = [], module.catch_up

    def spy(drafter, pending, cache, *more):
        out = real(drafter, pending, cache, *more)
        length = int(cache.lengths[0])
        kept.append((cache.keys[0, :length].clone(), cache.values[0, :length].clone(), out[1]))
        return out

    with monkeypatch.context() as patched:
        patched.setattr(module, "catch_up", spy)
        result = run()
    return kept, result


@pytest.mark.parametrize("kind", KINDS)
def test_the_drafter_has_the_same_rows(monkeypatch, kind):
    model, tokenizer, good = miniature_pair()
    rival = kind in RIVALS
    drafter = random_drafter(Target(model), kind) if rival else sparrow.SparrowDrafter.from_target(
        Target(model), **KINDS[kind]
    )  # fmt: skip
    if kind != "EAGLE-3":
        drafter.load_state_dict(drafter.state_dict() | good.state_dict())
    inputs, options = question(SETTINGS, tokenizer, 64, 0, split="dev").inputs, {"max_new_tokens": 24}
    made = tape.record(model, inputs, drafter.config.state_layers, options, 0, drafter.config.seen_layer)
    live, out = caches(
        monkeypatch, text, lambda: sparrow.generate(model, drafter, **inputs, **options, tree=TREE)
    )  # fmt: skip
    replayed, emitted = caches(monkeypatch, tape, lambda: tape.replay(made, drafter, TreeConfig.parse(TREE)))
    assert emitted == out.stats.emitted and len(live) == len(replayed) > 3
    for ours, theirs in zip(replayed, live, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    if kind == "the target's numbers":  # else this would say nothing: positions are not row numbers here
        assert int(live[0][2]) != len(live[0][0])


def test_the_hash_of_a_model_looks_at_all_of_a_matrix():
    model = torch.nn.Linear(64, 64, bias=False)
    before = model_hash(model)
    for at in (0, 64 * 31, 64 * 63):  # up to 64 values of each are looked at, spread over it
        flat = model.weight.data.view(-1)
        kept = float(flat[at])
        flat[at] += 1
        assert model_hash(model) != before, at
        flat[at] = kept
    assert model_hash(model) == before
