"""Pictures of a table, from its JSON alone."""

import pathlib
from typing import Any

from sparrow.evaluation.pivots import Cell, Result, distinct, only, tree_of

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
            axis.set_ylim(bottom=0)
    save(drawn, axes, file)


def _kind(cells: list[Cell]) -> str:
    """The tree, "auto" where it was chosen, "" where there is none."""
    tree = tree_of(cells)
    return "" if tree == "-" else tree.partition(":")[0]


def panels(rows: int, columns: int) -> tuple[Any, Any]:
    """(figure, axes [rows][columns])."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (0.6 + 5 * columns, 0.8 + 4 * rows)
    drawn, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", sharey=True)
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


def errorbar(axis, x, figures: list[dict[str, float]], label: str, number: int, **style: Any) -> None:
    """Figures with their intervals over x; the number decides colour and marker."""
    y = [f["value"] for f in figures]
    low, high = ([f[side] if f[side] is not None else f["value"] for f in figures] for side in ("low", "high"))
    errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
    style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], **style}
    axis.errorbar(x, y, yerr=errors, label=label, ms=4, capsize=3, lw=1.4, **style)


def save(drawn, axes, file: pathlib.Path) -> None:
    """Writes the picture, its legend outside: one entry per label."""
    from matplotlib import pyplot as plt

    entries: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    drawn.legend(entries.values(), entries.keys(), fontsize=8, loc="outside right upper")
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(file, dpi=130)
    plt.close(drawn)
