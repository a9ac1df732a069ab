"""The table of training options: tau of every arm, and its ratio to the first one's. From the JSON alone."""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

from sparrow.evaluation.cells import interval, quotient
from sparrow.evaluation.report.pictures import GREY, OTHERS, SHORT, errorbar, panels, save
from sparrow.evaluation.report.pivots import Cell, Result, distinct, drafting, figure, grid, only, paired_tau, sums

Columns = dict[str, dict[str, Any]]  # name -> keys of the cells in it


def columns(cells: list[Cell]) -> Columns:
    """One per tree, temperature and visual length."""
    points = dict.fromkeys((c["temperature"], c["length"]) for c in cells)
    return {
        f"{tree}, T={temperature:g}, {length}": {"tree": tree, "temperature": temperature, "length": length}
        for tree in distinct(cells, "tree")
        for temperature, length in sorted(points)
    }


def sums_of_lengths(cells: list[Cell]) -> Columns:
    """One per tree: all greedy cells."""
    greedy = only(cells, temperature=0.0)
    return {f"{tree}, T=0, all": {"tree": tree, "temperature": 0.0} for tree in distinct(greedy, "tree")}


def options_table(result: Result) -> str:
    """What each arm is, tau at every point and tree, and the ratio to the first arm's."""
    cells = drafting(result)
    arms, shown = distinct(cells, "arm"), columns(cells)
    folders = {s["arm"]: s["drafter"] for s in result["settings"]["systems"]}
    made = [[arm, *_training(result["training"].get(folders[arm]))] for arm in arms]
    text = grid(["arm", "overrides of recipes/sparrow.yaml", "seconds", "steps", "seed"], made, "The arms")
    rows = [[arm, *(figure(_tau(only(cells, arm=arm, **keys))) for keys in shown.values())] for arm in arms]
    text += grid(["arm", *shown], rows, "tau: tree, temperature, visual tokens")
    shown |= sums_of_lengths(cells)
    rows = [[arm, *(figure(_ratio(cells, arm, keys), 3) for keys in shown.values())] for arm in arms[1:]]
    return text + grid(["arm", *shown], rows, f"tau over that of {arms[0]}, paired over clips")


def options_picture(result: Result, file: pathlib.Path) -> None:
    """The ratios to the first arm, one panel per tree, an arm per line: greedy, and sampled where there is any."""
    cells = drafting(result)
    arms, trees = distinct(cells, "arm"), distinct(cells, "tree")
    temperatures = sorted(distinct(cells, "temperature"))
    drawn, axes = panels(1, len(trees), 0.7 + 0.36 * len(arms), sharey=True)
    for axis, tree in zip(axes[0], trees, strict=True):
        for number, temperature in enumerate(temperatures):
            keys = {"tree": tree, "temperature": temperature}
            ratios = [_ratio(cells, arm, keys) for arm in arms]
            have: list[tuple[int, Any]] = [(at, r) for at, r in enumerate(ratios) if r and r["value"] is not None]
            at = [row + 0.24 * (number - (len(temperatures) - 1) / 2) for row, _ in have]
            lengths = ", ".join(map(str, sorted(distinct(only(cells, temperature=temperature), "length"))))
            label = f"T = {temperature:g}: {lengths} visual tokens"
            errorbar(axis, at, [r for _, r in have], label, OTHERS[number], sideways=True, ls="none")
        axis.axvline(1.0, color=GREY, lw=1)
        axis.set(title=f"tree {tree}", xlabel=f"tau over that of {SHORT.get(arms[0], arms[0])}")
    axes[0][0].set_yticks(range(len(arms)), ["\n".join(textwrap.wrap(arm, 28)) for arm in arms])
    axes[0][0].invert_yaxis()
    save(drawn, axes, file)


def _ratio(cells: list[Cell], arm: str, keys: dict[str, Any]) -> dict[str, float | None] | None:
    base = cells[0]["arm"]
    return paired_tau(only(cells, arm=arm, **keys), only(cells, arm=base, **keys))


def _tau(cells: Sequence[Cell]) -> dict[str, float | None] | None:
    if not cells:
        return None
    return interval(list(zip(sums(cells, "tokens"), sums(cells, "rounds"), strict=True)), quotient)


def _training(record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return ["-"] * 4
    return [str(record["overrides"]), f"{record['seconds']:.0f}", str(record["steps"]), str(record["seed"])]
