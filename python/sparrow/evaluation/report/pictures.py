"""Pictures of a table, from its JSON alone."""

import pathlib
from typing import Any

from sparrow.evaluation.report.pivots import Cell, Result, distinct, drafting, only, tree_of
from sparrow.files import write_figure

MARKERS = "osD^vPX*<>"


def over_length(result: Result, key: str, label: str, line: float | None, file: pathlib.Path) -> None:
    """A figure over the visual length, one panel per temperature and tree; systems without a tree are in all.

    Args:
        key: of the cells' figure; label: of the axis; line: a horizontal line, None = none.
    """
    cells = [c for c in result["cells"] if c["system"] != "transformers"]
    kinds = {s: _kind(only(cells, system=s)) for s in distinct(cells, "system")}
    trees = list(dict.fromkeys(k for k in kinds.values() if k)) or [""]
    temperatures = sorted(distinct(cells, "temperature"))
    drawn, axes = panels(len(temperatures), len(trees))
    arms = distinct(cells, "arm")
    for row, temperature in zip(axes, temperatures, strict=True):
        for axis, tree in zip(row, trees, strict=True):
            for system, kind in kinds.items():
                if kind in ("", tree):
                    own = sorted(only(cells, temperature=temperature, system=system), key=lambda c: c["length"])
                    _by_length(axis, arms.index(own[0]["arm"]), len(arms), own, key)
            if line is not None:
                axis.axhline(line, color="0.4", lw=1)
            axis.set(title=f"T = {temperature:g}" + (f", tree {tree}" if tree else ""), ylabel=label)
    save(drawn, axes, file)


def _kind(cells: list[Cell]) -> str:
    """The tree, "auto" where it was chosen, "" where there is none."""
    tree = tree_of(cells)
    return "" if tree == "-" else tree.partition(":")[0]


def panels(rows: int, columns: int, width: float = 5.0, shared: bool = True) -> tuple[Any, Any]:
    """(figure, axes [rows][columns]); width of each in inches; shared: the y axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (2.6 + width * columns, 0.8 + 3.6 * rows)
    drawn, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", sharey=shared)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return drawn, axes


def _by_length(axis, number: int, of: int, cells: list[Cell], key: str) -> None:
    have = [c for c in cells if c.get(key) is not None and c[key]["value"] is not None]
    if not have:
        return
    x = [c["length"] * 1.02 ** (number - (of - 1) / 2) for c in have]  # side by side: bars do not hide one another
    errorbar(axis, x, [c[key] for c in have], have[0]["arm"], number)
    axis.set_xscale("log", base=2)
    lengths = [c["length"] for c in have]
    axis.set_xticks(lengths, [str(n) for n in lengths])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("visual tokens")


def tau_by_tree(result: Result, file: pathlib.Path) -> None:
    """tau of every arm over the trees; one panel per temperature and visual length."""
    cells = drafting(result)
    points = list(dict.fromkeys((c["temperature"], c["length"]) for c in cells))
    trees, arms = distinct(cells, "tree"), distinct(cells, "arm")
    drawn, axes = panels(1, len(points))
    for axis, (temperature, length) in zip(axes[0], points, strict=True):
        for number, arm in enumerate(arms):
            own = only(cells, arm=arm, temperature=temperature, length=length)
            x = [trees.index(c["tree"]) + 0.08 * (number - (len(arms) - 1) / 2) for c in own]
            errorbar(axis, x, [c["tau"] for c in own], arm, number, ls="none")
        axis.set_xticks(range(len(trees)), trees, rotation=45)
        axis.set(title=f"T = {temperature:g}, {length} visual tokens", ylabel="tokens per round (tau)")
        axis.set_xlabel("tree: nodes-depth-width")
    save(drawn, axes, file)


def acceptance(result: Result, file: pathlib.Path) -> None:
    """Acceptance over the depth, one panel per tree; the first length and temperature."""
    cells = drafting(result)
    cells = only(cells, **{key: cells[0][key] for key in ("length", "temperature")})
    trees, arms = distinct(cells, "tree"), distinct(cells, "arm")
    drawn, axes = panels(-(-len(trees) // 3), min(3, len(trees)), width=4.0)
    for axis in axes.flat[len(trees) :]:
        axis.set_visible(False)
    for axis, tree in zip(axes.flat, trees, strict=False):
        for cell in only(cells, tree=tree):
            points = [(d, f) for d, f in enumerate(cell["acceptance_by_depth"], 1) if f["value"] is not None]
            number = arms.index(cell["arm"])
            x = [d + 0.06 * (number - (len(arms) - 1) / 2) for d, _ in points]
            errorbar(axis, x, [f for _, f in points], cell["arm"], number)
        axis.set(title=f"tree {tree}", xlabel="depth", ylabel="accepted, of the paths that got there")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(0, 1.02)
    save(drawn, axes, file)


def watching(result: Result, file: pathlib.Path) -> None:
    """Words right of all classes over the visual length, with the true, another and a black video."""
    drawn, axes = panels(1, 1, width=6.0)
    for number, video in enumerate(distinct(result["rows"], "video")):
        rows = [r for r in only(result["rows"], video=video) if r["accuracy"]["all"]["value"] is not None]
        errorbar(axes[0][0], [r["length"] for r in rows], [r["accuracy"]["all"] for r in rows], video, number)
    lengths = distinct(result["rows"], "length")
    axes[0][0].set_xscale("log", base=2)
    axes[0][0].set_xticks(lengths, [str(n) for n in lengths])
    axes[0][0].set(xlabel="visual tokens", ylabel="words right, all classes, teacher-forced", ylim=(0, 1.02))
    save(drawn, axes, file)


def errorbar(axis, x, figures: list[dict[str, float]], label: str, number: int, **style: Any) -> None:
    """Figures with their intervals over x; the number decides colour and marker."""
    y = [f["value"] for f in figures]
    low, high = ([f[side] if f[side] is not None else f["value"] for f in figures] for side in ("low", "high"))
    errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
    style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], **style}
    axis.errorbar(x, y, yerr=errors, label=label, ms=4, capsize=3, lw=1.4, **style)


def save(drawn, axes, file: pathlib.Path, bottom: float | None = 0.0) -> None:
    """Writes the picture, its legend outside: one entry per label; the y axis is named in the first column.

    bottom: of all y axes; None = as it comes.
    """
    from matplotlib import pyplot as plt

    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    for axis in axes.flat if bottom is not None else ():
        axis.set_ylim(bottom=bottom)  # not before all is drawn: it ends the scaling of axes that are shared
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    drawn.legend(entries.values(), entries.keys(), fontsize=8, loc="outside right upper")
    write_figure(file, drawn, dpi=130)
    plt.close(drawn)
