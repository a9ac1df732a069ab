"""Speeds side by side: in turns, a warm-up that does not count, and no speed-up that the runs do not agree on."""

import io
import itertools

import pytest
import torch
from rich.console import Console

from sparrow.cli import measure
from sparrow.evaluation.systems import PLAIN, SPECVLM, TRANSFORMERS, Run, System

SPARROW = System("sparrow", "sparrow", "folder", "8-4-2")


def run(decode: float, whole: float, tokens: int = 10) -> Run:
    return Run(list(range(tokens)), whole, decode, tokens - 1, [])


def shown(runs: measure.Runs, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(measure.table(runs))
    return console.file.getvalue().splitlines()


def cells(lines: list[str], name: str) -> list[str]:
    return next(line for line in lines if line.strip().startswith(name)).replace("plain loop", "plain").split()[1:]


def test_in_turns_after_a_warm_up(monkeypatch):
    calls, clock = [], itertools.count(1)

    def once(system, model, drafter, inputs, options, seed):
        calls.append((system.name, drafter, torch.get_num_threads()))
        return run(1, next(clock))

    monkeypatch.setattr(measure, "run_once", once)
    runs = measure.measure([TRANSFORMERS, PLAIN, SPARROW], "model", "drafter", {}, {})
    names = ["transformers", "plain", "sparrow"]
    assert [name for name, _, _ in calls] == names * 4 and len({threads for _, _, threads in calls}) == 1
    assert all((drafter == "drafter") == (name == "sparrow") for name, drafter, _ in calls)
    assert {name: [r.seconds for r in done] for name, done in runs.items()} == {
        "transformers": [4, 7, 10], "plain": [5, 8, 11], "sparrow": [6, 9, 12],
    }  # fmt: skip


def test_one_row_per_system():
    """Medians by hand: 9 tokens after the first, 10 in all."""
    runs = {
        "transformers": [run(3, 4), run(9, 20), run(3, 5)],
        "plain": [run(2, 4.5), run(2.25, 4), run(2, 4)],
        "sparrow": [run(0.5, 2), run(1, 2.5), run(0.75, 2)],
    }
    lines = shown(runs)
    assert cells(lines, "transformers") == ["3.0", "2.0"]
    assert cells(lines, "plain") == ["4.5", "1.50x", "2.5", "~1.25x"]  # once 4.5 s, once 4 s against 4 s and 5 s
    assert cells(lines, "sparrow") == ["12.0", "4.00x", "2.67x", "5.0", "2.50x", "2.00x"]
    assert any(line.startswith("~ the runs differ") for line in lines)
    assert "median of 3 runs each, in turns" in lines[0] and max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    assert not any(line.startswith("~") for line in shown({**runs, "plain": [run(2, 3)] * 3}))


@pytest.mark.parametrize(("theirs", "said"), [([2, 2, 2], "0.50x"), ([2, 5, 2], "~0.50x"), ([9, 9, 9], "2.25x")])
def test_slower_only_where_every_turn_was(theirs, said):
    ours = [run(4, 4)] * 3
    assert measure.speed_up(ours, [run(x, x) for x in theirs], measure.whole_rate) == said


def test_nothing_to_decode():
    """One token comes from the prompt's pass alone."""
    runs = {name: [run(0.0, 2, tokens=1)] * 3 for name in ("transformers", "plain", SPECVLM.name)}
    lines = shown(runs)
    assert cells(lines, "transformers") == ["-", "0.5"]
    assert cells(lines, "SpecVLM") == ["-", "-", "-", "0.5", "1.00x", "1.00x"]


def test_any_other_output_is_told():
    runs = {"transformers": [run(1, 1)] * 3, "plain": [run(1, 1)] * 3}
    ours = list(range(10))
    assert measure.verdict(ours, runs).startswith("identical to plain decoding: yes (tokens 10 and 10, SHA-256 ")
    runs["plain"] = [run(1, 1), Run([*range(9), 99], 1, 1, 9, []), run(1, 1)]
    assert not measure.same(runs) and measure.verdict(ours, runs).startswith("identical to plain decoding: no")
