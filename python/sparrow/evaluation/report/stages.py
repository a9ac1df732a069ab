"""Where the time goes: shares of the stages, and what a round costs in steps of plain decoding. From the JSON alone."""

import pathlib
import statistics
from typing import Any

from sparrow.decoding.stats import STAGES
from sparrow.evaluation.cells import interval, quotient, speed_ratio
from sparrow.evaluation.report.pictures import panels, save
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
    """Stacked bars: the stages' shares of the whole, and of a round, in plain steps. T = 0, or the lowest there is."""
    lowest = min(distinct(result["cells"], "temperature"))
    timed = [pair for pair in _timed(result) if pair[0]["temperature"] == lowest]
    drawn, axes = panels(2, 1, width=1 + len(timed), shared=False)
    names = ["\n".join([*c["arm"].split(", "), c["tree"] or "", str(c["length"])]) for c, _ in timed]
    whole = [shares(c) for c, _ in timed]
    rounds = [in_plain_steps(c, plain) for c, plain in timed]
    for axis, figures, parts in ((axes[0][0], whole, STAGES), (axes[1][0], rounds, ROUND)):
        _stack(axis, [{part: of[part]["value"] or 0.0 for part in parts} for of in figures])
        axis.set_xticks(range(len(names)), names, fontsize=7)
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("share of the time in all stages")
    axes[1][0].set_ylabel("seconds of a round, in plain steps")
    axes[1][0].axhline(1.0, color="0.4", lw=1)
    for at, (cell, _) in enumerate(timed):
        if cell["tau"]["value"] is not None and cell["system"] != "plain":
            axes[1][0].plot(at, cell["tau"]["value"], "k_", ms=22, mew=2, label="tau: tokens of a round")
    save(drawn, axes, file)


def _stack(axis: Any, bars: list[dict[str, float]]) -> None:
    below = [0.0] * len(bars)
    for part in bars[0]:
        heights = [bar[part] for bar in bars]
        axis.bar(range(len(bars)), heights, 0.7, bottom=below, label=part, color=f"C{STAGES.index(part)}")
        below = [a + b for a, b in zip(below, heights, strict=True)]
