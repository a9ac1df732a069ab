"""bench.round on a tiny decoder, and what the documents show of its results."""

import json
import pathlib
import sys

import pytest
import torch

from bench import auto_tree, batches, blocks
from bench import round as bench
from sparrow.decoding.stats import NoClock
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import TinySize, sized_target
from sparrow.tree import TreeConfig

ROOT = pathlib.Path(__file__).parents[2]
TREE = TreeConfig(15, 4, 4)


def measured(layers, lengths=(70,), rounds=2, tau=2.5, dtype=torch.float32):
    return bench.measure(TinySize(num_layers=layers), TREE, lengths, tau, rounds, torch.device("cpu"), dtype)


def test_counts():
    """A layer adds to verification alone; one host read, at the end; what is plain drafts nothing."""
    two, three, four = (measured(layers) for layers in (2, 3, 4))
    for rounds in ("drafted", "plain"):
        a, b, c = (made[rounds]["operators"] for made in (two, three, four))
        assert b["verify"] - a["verify"] == c["verify"] - b["verify"] == 9
        assert all(a[stage] == b[stage] == c[stage] for stage in ("draft", "sample", "commit"))
        assert two[rounds]["host_reads"] == {"draft": 0, "verify": 0, "sample": 0, "commit": 1}
        assert all(count > 0 for count in two[rounds]["allocations"].values())
    drafted, plain = (two[rounds]["operators"]["draft"] for rounds in ("drafted", "plain"))
    assert drafted > 100 and 0 < plain < 10


def test_drafting_does_the_same_at_every_visual_length():
    made = [measured(2, (length,))["drafted"] for length in (0, 3000)]
    for count in ("operators", "allocations"):
        assert made[0][count] == made[1][count]


def test_acceptance_is_as_scripted():
    for tau in (1.0, 2.5, 4.37):
        made = measured(1, rounds=20, tau=tau)
        assert made["drafted"]["seconds"][70]["tau"] == pytest.approx(tau, abs=0.1)
        assert made["plain"]["seconds"][70]["tau"] == 1
        assert all(seconds > 0 for seconds in made["drafted"]["seconds"][70].values())


def test_an_operator_more_and_a_read_more_are_counted(monkeypatch):
    target = Target(sized_target("qwen2_5_vl", TinySize(), torch.device("cpu"), torch.float32))
    plain = bench.Bench(target, bench.NoDrafter(), bench.Root())
    with torch.no_grad(), target.verifying():
        before = bench.counted(plain, plain.state(70, 1.0))
        real = plain.drafter.draft
        planted = lambda state, shape: (int(state.root[0] + 1), real(state, shape))[1]  # noqa: E731
        monkeypatch.setattr(plain.drafter, "draft", planted)
        after = bench.counted(plain, plain.state(70, 1.0))
        assert after["operators"]["draft"] == before["operators"]["draft"] + 2  # the sum, and its read
        assert after["host_reads"]["draft"] == 1 and before["host_reads"]["draft"] == 0
        assert plain.step(plain.state(70, 1.0), NoClock()) == 1


def test_the_command_saves_and_shows(tmp_path, monkeypatch, capsys):
    file = tmp_path / "new" / "tiny.json"
    arguments = ["--size", "tiny", "--layers", "1", "--lengths", "70", "200", "--rounds", "2", "--tree", "15-4-4"]
    monkeypatch.setattr(sys, "argv", ["round", *arguments, "--save", str(file)])
    assert bench.main() == 0
    result = json.loads(file.read_text())
    assert result["provenance"]["command"].startswith("python -m bench.round --size tiny") and result["layers"] == 1
    shown = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["round", "--table", str(file)])
    assert bench.main() == 0 and capsys.readouterr().out == shown
    assert "| tiny (1) | drafted |" in shown


def test_the_document_shows_the_results():
    files = sorted((ROOT / "bench" / "results" / "round").glob("*.json"))
    assert files and bench.table([json.loads(f.read_text()) for f in files]) in (ROOT / "docs" / "round.md").read_text()


def test_the_document_shows_what_auto_does():
    result = json.loads((ROOT / "bench" / "results" / "auto_tree.json").read_text())
    assert auto_tree.table(result) in (ROOT / "docs" / "round.md").read_text()


def test_a_lucky_tree_is_not_the_best():
    """Two trees of one speed: each turn's luck is gone in the turns that did not choose."""
    turns = {"auto": [9.0, 9.0], "transformers": [1.0, 1.0], "a": [12.0, 8.0], "b": [8.0, 12.0]}
    row = {"tokens_per_second": {}, "turns": turns}
    assert auto_tree.over_the_other_turns([row]) == 9.0 / 8.0
    assert auto_tree.over_the_other_turns([{"tokens_per_second": {}}]) is None
    assert auto_tree.best_fixed({"auto": 9.0, "plain": 8.0, "transformers": 7.0, "a": 2.0, "b": 3.0}) == "b"


@pytest.mark.parametrize(("name", "module"), [("blocks", blocks), ("blocks_smollm2", blocks), ("batches", batches)])
def test_the_document_shows_what_was_measured(name, module):
    result = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    assert module.table(result) in (ROOT / "docs" / "round.md").read_text()
