"""Pictures with curves: figures over the visual length, the tree, the depth or the layer. From the JSON alone."""

import pathlib
from typing import Any

from sparrow.evaluation.hidden import FIGURES
from sparrow.evaluation.report.pictures import GREY, OTHERS, errorbar, over_lengths, panels, save, styles
from sparrow.evaluation.report.pivots import Cell, Result, distinct, drafting, only, tree_of

VIDEOS = {"true": "the true video", "shuffled": "another clip's video", "black": "black frames"}


def over_length(result: Result, key: str, label: str, line: float | None, file: pathlib.Path) -> None:
    """A figure over the visual length, one panel per temperature and tree; systems without a tree are in all.

    Args:
        key: of the cells' figure; label: of the axis; line: a horizontal line, None = none.
    """
    cells = [c for c in result["cells"] if c["system"] != "transformers"]
    kinds = {s: _kind(only(cells, system=s)) for s in distinct(cells, "system")}
    trees = list(dict.fromkeys(k for k in kinds.values() if k)) or [""]
    temperatures = sorted(distinct(cells, "temperature"))
    drawn, axes = panels(len(temperatures), len(trees), 3.4, sharey=True)
    looks = styles(distinct(cells, "arm"))
    for row, temperature in zip(axes, temperatures, strict=True):
        for axis, tree in zip(row, trees, strict=True):
            shown = [s for s, kind in kinds.items() if kind in ("", tree)]
            for at, system in enumerate(shown):
                own = sorted(only(cells, temperature=temperature, system=system), key=lambda c: c["length"])
                have = [c for c in own if c.get(key) is not None and c[key]["value"] is not None]
                if have:
                    x = [c["length"] * 1.02 ** (at - (len(shown) - 1) / 2) for c in have]  # side by side
                    joined = "-" if len(distinct(have, "tree")) == 1 else "none"  # no line through different trees
                    errorbar(axis, x, [c[key] for c in have], own[0]["arm"], looks[own[0]["arm"]], ls=joined)
            over_lengths(axis, sorted(distinct(cells, "length")))
            if line is not None:
                axis.axhline(line, color=GREY, lw=1)
            axis.set(title=f"T = {temperature:g}" + (f", tree {tree}" if tree else ""), ylabel=label)
    axes[0][0].set_ylim(bottom=0)  # not before all is drawn: it ends the scaling
    save(drawn, axes, file)


def _kind(cells: list[Cell]) -> str:
    """The tree, "fastest" where it was chosen, "" where there is none."""
    tree = tree_of(cells)
    return "" if tree == "-" else tree.partition(":")[0]


def tau_by_tree(result: Result, file: pathlib.Path) -> None:
    """tau of every arm over the trees; one panel per temperature and visual length."""
    cells = drafting(result)
    points = list(dict.fromkeys((c["temperature"], c["length"]) for c in cells))
    trees, arms = distinct(cells, "tree"), distinct(cells, "arm")
    drawn, axes = panels(len(points), 1, 3.0)
    looks = styles(arms)
    for axis, (temperature, length) in zip(axes[:, 0], points, strict=True):
        for number, arm in enumerate(arms):
            own = only(cells, arm=arm, temperature=temperature, length=length)
            x = [trees.index(c["tree"]) + 0.08 * (number - (len(arms) - 1) / 2) for c in own]
            errorbar(axis, x, [c["tau"] for c in own], arm, looks[arm], ls="none")
        axis.set_xticks(range(len(trees)), trees)
        axis.set(title=f"T = {temperature:g}, {length} visual tokens", ylabel="tokens per round (tau)")
        axis.set_xlabel("tree: nodes-depth-width")
        axis.set_ylim(bottom=0)
    save(drawn, axes, file)


def acceptance(result: Result, file: pathlib.Path) -> None:
    """Acceptance over the depth, one panel per tree; the first length and temperature."""
    cells = drafting(result)
    cells = only(cells, **{key: cells[0][key] for key in ("length", "temperature")})
    trees, arms = distinct(cells, "tree"), distinct(cells, "arm")
    drawn, axes = panels(-(-len(trees) // 3), min(3, len(trees)), 2.4, sharey=True)
    looks = styles(arms)
    for axis in axes.flat[len(trees) :]:
        axis.set_visible(False)
    for axis, tree in zip(axes.flat, trees, strict=False):
        for cell in only(cells, tree=tree):
            points = [(d, f) for d, f in enumerate(cell["acceptance_by_depth"], 1) if f["value"] is not None]
            look = looks[cell["arm"]]
            errorbar(axis, [d for d, _ in points], [f for _, f in points], cell["arm"], look, ms=3, lw=1)
        axis.set(title=f"tree {tree}", xlabel="depth", ylabel="share accepted")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(0, 1.03)
    save(drawn, axes, file)


def watching(result: Result, file: pathlib.Path) -> None:
    """Words right of all classes over the visual length, with the true, another and a black video."""
    drawn, axes = panels(1, 1, 3.0)
    for style, video in zip(OTHERS, distinct(result["rows"], "video"), strict=False):
        rows = [r for r in only(result["rows"], video=video) if r["accuracy"]["all"]["value"] is not None]
        errorbar(axes[0][0], [r["length"] for r in rows], [r["accuracy"]["all"] for r in rows], VIDEOS[video], style)
    over_lengths(axes[0][0], distinct(result["rows"], "length"))
    axes[0][0].set(ylabel="share of words right", ylim=(0, 1.03))
    save(drawn, axes, file)


def layer_cut(result: Result, file: pathlib.Path) -> None:
    """Words right by class over the first layer in which text cannot see the video."""
    rows: list[dict[str, Any]] = result["rows"]
    x = [row["first"] for row in rows]
    drawn, axes = panels(1, 1, 4.2)
    classes = [name for name in rows[0]["accuracy"] if all(r["accuracy"][name]["value"] is not None for r in rows)]
    looks = styles(name for name in classes if name != "all")
    for name in classes:
        figures = [row["accuracy"][name] for row in rows]
        if name == "all":
            errorbar(axes[0][0], x, figures, "all words", OTHERS[0]._replace(colour="#000000", marker="."), lw=2.6)
        else:
            errorbar(axes[0][0], x, figures, name, looks[name])
    axes[0][0].set_xlabel(f"first layer in which text cannot see the video ({x[-1]} = none)")
    axes[0][0].set(ylabel="share of words right", ylim=(0, 1.03))
    save(drawn, axes, file)


def hidden(result: Result, file: pathlib.Path) -> None:
    """Left: how far text rows have settled; right: what they take from the video. Over the layers."""
    rows: list[dict[str, Any]] = result["rows"]
    drawn, axes = panels(1, 2, 4.4, sharey=True)
    sides = ({"agreement", "cosine_text", "cosine_visual", "cosine_last"}, {"attention", "uniform", "cut", "cut_video"})
    looks = styles(FIGURES)
    for axis, names, title in zip(
        axes[0], sides, ("how far rows have settled", "what the video still gives"), strict=True
    ):
        for name in (n for n in FIGURES if n in names):
            have = [(row["layer"], row[name]) for row in rows if row.get(name) and row[name]["value"] is not None]
            errorbar(axis, [k for k, _ in have], [f for _, f in have], FIGURES[name], looks[name], ms=4, lw=1.2)
        axis.set(title=title, xlabel="layers k", ylabel="share, cosine", ylim=(min(0.0, lowest(rows)) - 0.03, 1.03))
        axis.xaxis.get_major_locator().set_params(integer=True)
    save(drawn, axes, file, columns=2)


def lowest(rows: list[dict[str, Any]]) -> float:
    """The least of all figures."""
    return min(f["value"] for row in rows for name, f in row.items() if name in FIGURES and f["value"] is not None)
