"""Where the time goes: shares of the stages, and what a round costs in steps of plain decoding. From the JSON alone."""

import itertools
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from sparrow.decoding.stats import STAGES
from sparrow.evaluation.cells import interval, quotient, speed_ratio
from sparrow.evaluation.report.pictures import GREY, OTHERS, SHORT, panels, save
from sparrow.evaluation.report.pivots import Cell, Result, distinct, figure, grid, only, tree_of

Figure = dict[str, float | None]
ROUND = tuple(stage for stage in STAGES if stage != "prefill")


def shares(cell: Cell) -> dict[str, Figure]:
    """Of the time in all stages, each one's share."""
    seconds = cell["per_clip"]["stage_seconds"]
    whole = [sum(of) for of in zip(*seconds.values(), strict=True)]
    return {stage: interval(list(zip(of, whole, strict=True)), quotient) for stage, of in seconds.items()}


def in_plain_steps(cell: Cell, plain: Cell, over: str = "round") -> dict[str, Figure]:
    """A round's seconds over those of a step of plain decoding on the same clips: "round", and its parts by stage.

    Args:
        over: what of the plain step: "round" = all, or a stage.
    """
    rounds, steps = (c["per_clip"]["rounds"][: c["counts"]["timed"]] for c in (cell, plain))
    step = _seconds(plain, over)
    rows = {name: list(zip(_seconds(cell, name), rounds, step, steps, strict=True)) for name in ("round", *ROUND)}
    return {name: interval(of, speed_ratio) for name, of in rows.items()}


def by_clip(cell: Cell, other: Cell) -> list[float]:
    """Decoding speed over another system's, clip by clip, medians of the runs."""
    speeds = []
    for of in (cell, other):
        timed = zip(of["per_clip"]["tokens"], of["per_clip"]["decode_seconds"], strict=False)  # fewer are timed
        speeds.append([tokens / seconds for tokens, seconds in timed if seconds])
    return [ours / theirs for ours, theirs in zip(*speeds, strict=True)]


def _seconds(cell: Cell, name: str) -> list[float]:
    """Per clip, of a stage or of all that make a round."""
    seconds = cell["per_clip"]["stage_seconds"]
    return [sum(of) for of in zip(*(seconds[s] for s in (ROUND if name == "round" else (name,))), strict=True)]


def stage_tables(result: Result) -> str:
    """Shares of every system of ours; the cost of a round of those that draft."""
    first, second = [], []
    for cell, plain in _timed(result):
        name = [str(cell["length"]), f"{cell['temperature']:g}", cell["arm"], tree_of([cell])]
        first.append([*name, *(_percent(share) for share in shares(cell).values())])
        if cell is not plain:
            cost = in_plain_steps(cell, plain)
            verify = in_plain_steps(cell, plain, "verify")["verify"]
            clips = sorted(by_clip(cell, only(result["cells"], system="transformers", **_point(cell))[0]))
            slowest = [f"{clips[0]:.2f}, {statistics.median(clips):.2f}"] if clips else ["-"]
            second.append([*name, figure(cell["tau"]), *map(figure, cost.values()), figure(verify), *slowest])
    head = ["visual tokens", "T", "system", "tree"]
    text = grid([*head, *STAGES], first, "Share of the time in all stages")
    head += [
        "tau",
        "a round, in plain steps",
        *(f"of which {stage}" for stage in ROUND),
        "verify over plain's verify",
        "decoding over transformers': slowest clip, median clip",
    ]
    return text + grid(head, second, "What a round costs")


def _timed(result: Result) -> list[tuple[Cell, Cell]]:
    """Cells with stages, each with that of plain decoding at its length and temperature."""
    cells = [c for c in result["cells"] if "stage_seconds" in c["per_clip"]]
    cells.sort(key=lambda c: (c["length"], c["temperature"]))
    return [(c, only(cells, system="plain", **_point(c))[0]) for c in cells]


def _point(cell: Cell) -> dict[str, Any]:
    return {name: cell[name] for name in ("length", "temperature")}


def _percent(value: Figure) -> str:
    if value["value"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.1%}"
    return f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def stage_picture(result: Result, file: pathlib.Path) -> None:
    """Stacked bars, one per system and length: the stages' shares of the call, and of a round, in plain steps.

    T = 0, or the lowest there is.
    """
    lowest = min(distinct(result["cells"], "temperature"))
    timed = [pair for pair in _timed(result) if pair[0]["temperature"] == lowest]
    drawn, axes = panels(1, 2, 0.7 + 0.27 * len(timed), sharey=True)
    whole, rounds = axes[0]
    at = _places([cell["length"] for cell, _ in timed])
    _stack(whole, at, [shares(cell) for cell, _ in timed], STAGES)
    _stack(rounds, at, [in_plain_steps(*pair) for pair in timed], ROUND)
    drafting = [(y, c["tau"]["value"]) for y, (c, _) in zip(at, timed, strict=True) if c["system"] != "plain"]
    rounds.plot([tau for _, tau in drafting], [y for y, _ in drafting], "kD", ms=4.5, mfc="white", label="tau")
    rounds.axvline(1.0, color=GREY, lw=1)
    whole.set_yticks(at, [f"{SHORT.get(c['arm'], c['arm'])}  {c['length']}" for c, _ in timed])
    whole.set(xlabel="share of the call's time", xlim=(0, 1), ylim=(at[-1] + 0.7, at[0] - 0.7))
    rounds.set_xlabel("a round, in steps of plain decoding; tau: its tokens")
    for axis in axes.flat:
        axis.grid(axis="y", visible=False)
    save(drawn, axes, file, columns=6)


def _places(lengths: list[int]) -> list[float]:
    """Of the bars: a gap wherever the visual length changes."""
    changes = [0, *(a != b for a, b in itertools.pairwise(lengths))]
    return [at + 0.5 * gaps for at, gaps in enumerate(itertools.accumulate(changes))]


def _stack(axis: Any, at: list[float], bars: list[dict[str, Figure]], parts: Sequence[str]) -> None:
    left = [0.0] * len(bars)
    for part, look in zip(STAGES, OTHERS, strict=False):
        if part in parts:
            widths = [bar[part]["value"] or 0.0 for bar in bars]
            axis.barh(at, widths, 0.8, left=left, label=part, color=look.colour, hatch=look.hatch, ec="white", lw=0)
            left = [a + b for a, b in zip(left, widths, strict=True)]
