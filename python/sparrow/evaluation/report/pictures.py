"""What every picture shares: one fixed look per system, page width, a legend below, and a digest of what is drawn."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sparrow.files import write_figure

PAGE = 8.0  # inches: what a README page shows without shrinking the type below 9 points
DPI = 130
DIGEST = "Plotted"  # the key of a PNG's text in which `digest` of its figure stands
GREY = "0.4"


class Style(NamedTuple):
    """How a system looks in every picture; the marker or the hatch alone tells it from the others."""

    colour: str
    marker: str
    hatch: str
    hollow: bool = False


# Okabe and Ito's colours, a purple, black and two greys: apart in every kind of colour blindness (tests/evaluation).
SYSTEMS = {
    "transformers": Style("#000000", "x", "////"),
    "plain": Style("#484848", "*", "++"),
    "prompt lookup": Style("#c2c2c2", "<", "oo"),
    "SpecVLM": Style("#6a0dad", "X", "---"),
    "MSD": Style("#d55e00", "D", "\\\\"),
    "MSD + VATA": Style("#e69f00", "^", "xx"),
    "ViSpec": Style("#009e73", "v", "|||"),
    "text-only": Style("#cc79a7", "P", ".."),
    "Sparrow, the paper's recipe": Style("#56b4e9", "s", "//"),
    "Sparrow, shipped": Style("#0072b2", "o", ""),
}
# For arms of one's own and for what is no system (stages, classes of words), in the order in which they come.
OTHERS = (
    Style("#332288", "p", ""),
    Style("#cc6677", "d", "////"),
    Style("#117733", ">", "..."),
    Style("#ddcc77", "h", "xxx"),
    Style("#88ccee", "p", "\\\\\\", True),
    Style("#661100", "d", "+++", True),
    Style("#999933", ">", "ooo", True),
    Style("#aa4499", "h", "--", True),
)
SHORT = {
    "plain": "plain (no drafter)",
    "Sparrow, the paper's recipe": "Sparrow (paper)",
    "Sparrow, shipped": "Sparrow (shipped)",
}


def styles(names: Iterable[str]) -> dict[str, Style]:
    """The look of each: a system's own, or the next of OTHERS."""
    names = list(names)
    free = [name for name in names if name not in SYSTEMS]
    return {name: SYSTEMS.get(name) or OTHERS[free.index(name) % len(OTHERS)] for name in names}


def panels(rows: int, columns: int, height: float = 2.7, **shared: Any) -> tuple[Any, Any]:
    """(figure, axes [rows][columns]) as wide as a page; height of each row in inches; shared: sharex, sharey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (PAGE, 0.5 + height * rows)
    with plt.rc_context({"font.size": 9}):
        drawn, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **shared)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return drawn, axes


def errorbar(axis: Any, x: Sequence[float], figures: Sequence[dict], label: str, style: Style, **more: Any) -> None:
    """Figures with their intervals over x; sideways=True: x upwards, the figures to the right."""
    y = [f["value"] for f in figures]
    low, high = ([f[side] if f[side] is not None else f["value"] for f in figures] for side in ("low", "high"))
    errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
    look = {"color": style.colour, "marker": style.marker, "ms": 5, "capsize": 2, "lw": 1.4, "elinewidth": 1}
    look |= {"markerfacecolor": "white" if style.hollow else style.colour, **more}
    if look.pop("sideways", False):
        axis.errorbar(y, x, xerr=errors, label=label, **look)
    else:
        axis.errorbar(x, y, yerr=errors, label=label, **look)


def over_lengths(axis: Any, lengths: Sequence[int]) -> None:
    """The x axis is the visual length, by powers of two."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(n) for n in lengths])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("visual tokens")


def save(drawn: Any, axes: Any, file: pathlib.Path, columns: int = 4) -> None:
    """Writes the picture: one legend below all panels, an entry per label; the y axis is named in the first column."""
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        drawn.legend(entries.values(), entries.keys(), fontsize=9, loc="outside lower center", ncols=columns)
    write(drawn, file)


def write(drawn: Any, file: pathlib.Path) -> None:
    """Writes the PNG with its digest, closes the figure."""
    from matplotlib import pyplot as plt

    write_figure(file, drawn, DPI, {DIGEST: digest(drawn)})
    plt.close(drawn)


def digest(drawn: Any) -> str:
    """SHA-256 of all that is plotted: points, bars, intervals, words. Fonts and pixels do not enter."""
    return hashlib.sha256(json.dumps([_plotted(axis) for axis in drawn.axes]).encode()).hexdigest()


def _plotted(axis: Any) -> dict[str, Any]:
    def rounded(points: Any) -> list[list[float]]:
        return [[round(float(x), 4) for x in point] for point in points]

    bars = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axis.patches]
    segments = [s for c in axis.collections if hasattr(c, "get_segments") for s in c.get_segments()]
    return {
        "words": [axis.get_title(), axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel()],
        "values": [text.get_text() for text in axis.texts],
        "ticks": [getattr(a.get_major_formatter(), "seq", None) for a in (axis.xaxis, axis.yaxis)],
        "labels": axis.get_legend_handles_labels()[1],
        "lines": [rounded(line.get_xydata()) for line in axis.lines],
        "bars": rounded(bars),
        "intervals": [rounded(segment) for segment in segments],
    }
