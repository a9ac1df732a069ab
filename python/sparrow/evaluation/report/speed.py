"""How fast every system is, in bars: what a new reader wants to know first. From the JSON alone."""

import pathlib
from typing import Any, NamedTuple

from sparrow.evaluation.report.pictures import GREY, SHORT, panels, save, styles
from sparrow.evaluation.report.pivots import Cell, Result, distinct, only


class Speed(NamedTuple):
    """A system at one visual length.

    Attributes:
        system: the arm's name.
        decoding, whole: times as fast as transformers' generate, after the first token and with the prefill:
            figures {"value", "low", "high"}.
        tokens_per_second: of decoding, over the timed clips.
    """

    system: str
    decoding: dict[str, float]
    whole: dict[str, float]
    tokens_per_second: float


def speeds(result: Result) -> dict[int, list[Speed]]:
    """By the shortest and the longest visual length, greedy or at the lowest temperature, the fastest first.

    Every system has the tree that was chosen for it, where the table chose trees; those that were given none are left
    out then: their bars would not compare.
    """
    cells = only(result["cells"], temperature=min(distinct(result["cells"], "temperature")))
    cells = [cell for cell in cells if cell["dsr_transformers"]["value"] is not None]  # none: nothing was decoded
    if any("tree_choice" in cell for cell in cells):
        cells = [cell for cell in cells if cell["tree"] is None or "tree_choice" in cell]
    lengths = sorted(distinct(cells, "length"))
    order = sorted(only(cells, length=lengths[0]), key=lambda cell: -cell["dsr_transformers"]["value"])
    systems = distinct(order, "system")
    made = {}
    for length in dict.fromkeys((lengths[0], lengths[-1])):
        here = sorted(only(cells, length=length), key=lambda cell: systems.index(cell["system"]))
        made[length] = [
            Speed(_name(c, here), c["dsr_transformers"], c["esr_transformers"], _per_second(c)) for c in here
        ]
    return made


def _name(cell: Cell, cells: list[Cell]) -> str:
    """The arm; with its tree where it has several."""
    return cell["arm"] if len(only(cells, arm=cell["arm"])) == 1 else cell["system"]


def _per_second(cell: Cell) -> float:
    timed = cell["counts"]["timed"]
    per_clip = cell["per_clip"]
    return sum(per_clip["tokens"][:timed]) / sum(per_clip["decode_seconds"][:timed])


def speed_picture(result: Result, file: pathlib.Path, title: str | None = None) -> None:
    """A row of panels per visual length: times as fast as transformers' generate, and tokens per second.

    title: of a row, in place of its visual length.
    """
    made = speeds(result)
    rows = max(map(len, made.values()))
    drawn, axes = panels(len(made), 2, 0.7 + 0.24 * rows, sharex="col", sharey="row")
    for (length, shown), row, kind in zip(made.items(), axes, ("short", "long"), strict=False):
        words = f"{kind} video: {length} visual tokens" if len(made) > 1 else f"{length} visual tokens"
        whole = [s.whole["value"] for s in shown]
        _bars(row[0], shown, [s.decoding["value"] for s in shown], "{:.2f}", whole)
        _bars(row[1], shown, [s.tokens_per_second for s in shown], "{:.0f}", [0.0] * len(shown))
        row[0].set_title(title or words, loc="left")
        at = range(len(shown))
        row[0].plot(whole, at, "kD", ms=4.5, mfc="white", label="whole call, prefill included")
        row[0].axvline(1, color=GREY, lw=1)
        row[0].set_yticks(at, [SHORT.get(s.system, s.system) for s in shown])
        row[0].invert_yaxis()
    axes[-1][0].set_xlabel("times as fast as transformers' generate (bars: decoding)")
    axes[-1][1].set_xlabel("tokens per second, decoding")
    for axis in axes.flat:
        axis.grid(axis="y", visible=False)
    save(drawn, axes, file)


def _bars(axis: Any, shown: list[Speed], values: list[float], words: str, beyond: list[float]) -> None:
    """A bar per system, its value in words to its right, and to the right of what else is drawn there."""
    looks = styles(speed.system for speed in shown)
    for at, (speed, value, other) in enumerate(zip(shown, values, beyond, strict=True)):
        look = looks[speed.system]
        axis.barh(at, value, 0.74, color=look.colour, hatch=look.hatch, edgecolor="white", lw=0)
        axis.annotate(words.format(value), (max(value, other), at), (5, 0), textcoords="offset points", va="center")
    axis.margins(x=0.16)
