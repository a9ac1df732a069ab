"""bench.policy and bench.coupling: walks over tables whose outcome is known, and what the documents show of results."""

import pathlib

import numpy as np
import pytest
import torch

from bench import auto_tree, coupling
from bench import policy as bench
from sparrow.decoding.costs import Costs
from sparrow.decoding.policy import Policy
from sparrow.drafters.network import SparrowDrafter
from sparrow.evaluation.tape import Replaying, record, replay
from sparrow.files import read_json
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig
from tests.videos import sample_inputs

ROOT = pathlib.Path(bench.__file__).parents[1]
CHAIN, BUSH = (TreeConfig.parse(text) for text in ("3-3-1", "7-3-3"))
SECONDS = {"none": (0.0, 1.0), "3-3-1": (0.3, 1.2), "7-3-3": (0.3, 1.3)}


def walk(tokens=60):
    """At every other token the chain is right for two tokens, the bush everywhere; both say so."""
    chain, bush = np.log([0.5, 0.5, 1e-9]), np.full(BUSH.candidates, -20.0)
    bush[[0, 3]], bush[[1, 6]] = np.log(0.5), np.log(0.49)  # the best child with its own, and the second with its own
    scores = {"3-3-1": [chain.astype(np.float32)] * tokens, "7-3-3": [bush.astype(np.float32)] * tokens}
    right = [min(2, tokens - 1 - i) for i in range(tokens)]
    accepted = {"3-3-1": [n if i % 2 else 0 for i, n in enumerate(right)], "7-3-3": right}
    return bench.Walk(tokens, accepted, scores)


def test_a_fixed_tree_is_its_rounds():
    one = walk()
    assert bench.fixed(one, "none", SECONDS) == 60
    assert bench.fixed(one, "7-3-3", SECONDS) == pytest.approx(20 * 1.6)
    assert bench.fixed(one, "3-3-1", SECONDS) == pytest.approx(30 * 1.5)  # one token, three, one, ...


def test_auto_is_compared_with_the_best_of_them():
    made = bench.compared([walk() for _ in range(4)], [CHAIN, BUSH], BUSH, SECONDS, 0.05, 3)
    assert made["best"] == "7-3-3" and min(made["auto_over_best"]) > 0.9
    assert made["auto_over_plain"] == pytest.approx(60 / 32 * np.mean(made["auto_over_best"]))


def test_without_noise_a_policy_is_one_walk():
    times = {
        bench.under_policy(walk(), Policy(Costs((CHAIN, BUSH)), BUSH), SECONDS, np.random.default_rng(s), 0.0)
        for s in range(3)
    }
    assert len(times) == 1


def test_a_recorded_walk_is_what_replaying_gives(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = SparrowDrafter.from_target(Target(model))
    options = {"do_sample": True, "temperature": 1e6, "top_k": 0, "top_p": 1.0, "max_new_tokens": 20}
    made = bench.walk_of(model, drafter, inputs, options | {"eos_token_id": None}, 3)
    tape = record(model, inputs, drafter.config.state_layers, options | {"eos_token_id": None}, 3)
    assert made.tokens == 19 and set(made.accepted) == {str(s) for s in bench.shapes_of(drafter)}
    for tree, accepted in made.accepted.items():
        shape, at, rounds = TreeConfig.parse(tree), 0, []
        while at < made.tokens:
            rounds.append(1 + accepted[at])
            at += rounds[-1]
        assert rounds == replay(tape, drafter, shape), tree
    assert max(made.accepted["3-3-1"]) == 3  # so hot that only the noise counts, which both have


def test_replaying_ends_with_the_tape(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = SparrowDrafter.from_target(Target(model))
    tape = record(model, inputs, drafter.config.state_layers, {"do_sample": False, "max_new_tokens": 1}, 0)
    assert Replaying(tape, drafter).done and replay(tape, drafter, BUSH) == []


@pytest.mark.parametrize("name", ["coupling", "coupling_dev", "policy"])
def test_results_have_their_tables(name):
    result = read_json(ROOT / "bench" / "results" / f"{name}.json")
    shown = (bench if name == "policy" else coupling).table(result).splitlines()
    assert len(shown) > 10 and all(line.count("|") == shown[0].count("|") for line in shown)


def test_the_document_shows_rows_of_the_result():
    rows = coupling.table(read_json(ROOT / "bench" / "results" / "coupling.json")).splitlines()
    shown = [line for line in (ROOT / "docs" / "sampling.md").read_text().splitlines() if line.startswith("|")]
    assert len(shown) > 10 and set(shown) <= set(rows)


def test_the_weights_of_the_document_are_those_of_the_result():
    """Geometric means over all rows of a kind, of tau over that without noise."""
    found: dict[tuple, dict[float, float]] = {}
    for r in read_json(ROOT / "bench" / "results" / "coupling_dev.json")["rows"]:
        key = (r["kind"], r["target"], r["sampling"], r["drafter"], r["tree"])
        found.setdefault(key, {})[r["weight"]] = sum(r["tokens"]) / sum(r["rounds"])
    text = " ".join((ROOT / "docs" / "sampling.md").read_text().split())
    said_of = {0.8: "by 1.16 on instructions to SmolLM2 and by 1.04 on clips", 0.5: "0.5 by 1.10 and 1.03"}
    for weight, said in said_of.items():
        means = [
            float(torch.tensor([v[weight] / v[0.0] for k, v in found.items() if k[0] == kind]).log().mean().exp())
            for kind in ("text", "clip")
        ]
        first, second = (f"{mean:.2f}" for mean in means)
        assert said in text and first in said and second in said


def test_the_document_of_a_round_has_both_tables():
    page = (ROOT / "docs" / "round.md").read_text()
    for program, name in ((bench, "policy"), (auto_tree, "auto_tree")):
        assert program.table(read_json(ROOT / "bench" / "results" / f"{name}.json")) in page
