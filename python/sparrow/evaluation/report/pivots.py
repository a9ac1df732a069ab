"""Markdown tables with one row per system and one column per visual length, tree or temperature."""

from collections.abc import Iterable, Sequence
from typing import Any

from sparrow.evaluation.cells import interval, speed_ratio

Cell = dict[str, Any]
Result = dict[str, Any]


def header(result: Result) -> str:
    """What the figures are, in two lines."""
    s = result["settings"]
    text = f"Table {s['table']}. Target {s['target']}, {s['dtype']}, split {s['split']}, seed {s['seed']}; "
    text += f"tau of drafters over {s['clips']} clips"
    if any(system["kind"] != "sparrow" for system in s["systems"]):
        text += f", of SpecVLM and prompt lookup over {s['live_others']}"
    text += f"; identity over {s['live']}"
    if s["timed"]:
        text += f"; times over {s['timed']} (median of {s['runs']} runs, one thread, {s['clock']} clock)"
    return text + f". Brackets: 95 % bootstrap interval over clips.\n\n{checks(result)}\n\n"


def checks(result: Result) -> str:
    """How many of the live runs were what they must be."""
    parts = []
    for name, words in (("identical", "live runs identical to the reference"), ("replay_equals_live", "replay = live")):
        found = [c[name] for c in result["cells"] if c.get(name) is not None]
        parts.append(f"{words}: {sum(x['clips'] for x in found)} of {sum(x['of'] for x in found)}")
    return "; ".join(parts) + "."


def figure(value: dict[str, float | None] | None, digits: int = 2) -> str:
    """2.41 [2.30, 2.52]."""
    if value is None or value["value"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.{digits}f}"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """A Markdown table, an empty line behind it."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return (f"### {title}\n\n" if title else "") + "\n".join(lines) + "\n\n"


def distinct(cells: Iterable[Cell], name: str) -> list[Any]:
    """The values of a key, in order."""
    return list(dict.fromkeys(c[name] for c in cells))


def only(cells: Iterable[Cell], **values: Any) -> list[Cell]:
    """The cells with these values."""
    return [c for c in cells if all(c[name] == value for name, value in values.items())]


def drafting(result: Result) -> list[Cell]:
    """The cells of systems with a drafter. Raises ValueError where there is none."""
    found = [c for c in result["cells"] if c["tree"] is not None]
    if not found:
        raise ValueError(f"table {result['settings']['table']} needs a system with a drafter, got none")
    return found


def paired_tau(ours: Sequence[Cell], theirs: Sequence[Cell]) -> dict[str, float | None] | None:
    """tau over tau, the interval paired: the same clips are drawn for both. Several cells: their sums, clip by clip.

    None where one has no cell.
    """
    if not ours or not theirs:
        return None
    rows = list(zip(*(sums(side, name) for side in (ours, theirs) for name in ("tokens", "rounds")), strict=True))
    return interval(rows, speed_ratio)


def sums(cells: Sequence[Cell], name: str) -> list[float]:
    """Per clip, over the cells."""
    return [sum(values) for values in zip(*(c["per_clip"][name] for c in cells), strict=True)]


def by_length(result: Result, key: str, title: str) -> str:
    """One table per temperature: a row per system, a column per visual length; of tau the longest over the shortest."""
    text = ""
    for temperature in distinct(result["cells"], "temperature"):
        cells = only(result["cells"], temperature=temperature)
        lengths = sorted(distinct(cells, "length"))
        ends = key == "tau" and len(lengths) > 1
        head = ["system", "tree", *map(str, lengths), *([f"{lengths[-1]} / {lengths[0]}"] if ends else [])]
        rows = []
        for system in distinct(cells, "system"):
            own = {c["length"]: c for c in only(cells, system=system)}
            row = [own[lengths[0]]["arm"], tree_of(own.values())]
            row += [figure(own[n].get(key)) if n in own else "-" for n in lengths]
            rows.append([*row, figure(paired_tau([own[lengths[-1]]], [own[lengths[0]]]), 3)] if ends else row)
        text += grid(head, rows, f"{title}, T = {temperature:g}, by visual tokens")
    return text


def tree_of(cells: Iterable[Cell]) -> str:
    """The tree of a system's cells; where it was chosen, that it was."""
    trees = distinct(cells, "tree")
    if any("tree_choice" in c for c in cells):
        return "fastest: " + ", ".join(trees)
    return trees[0] or "-"


def by_tree(result: Result) -> str:
    """tau per tree and arm, and acceptance by depth; one pair of tables per temperature and visual length."""
    text, cells = "", drafting(result)
    for temperature, length in dict.fromkeys((c["temperature"], c["length"]) for c in cells):
        here = only(cells, temperature=temperature, length=length)
        arms, trees = distinct(here, "arm"), distinct(here, "tree")
        rows = []
        for tree in trees:
            own = {c["arm"]: c for c in only(here, tree=tree)}
            rows.append([tree, *(figure(own[arm]["tau"]) if arm in own else "-" for arm in arms)])
        where = f"T = {temperature:g}, {length} visual tokens"
        text += grid(["tree: nodes-depth-width", *arms], rows, f"tau, {where}")
        deepest = max(len(c["acceptance_by_depth"]) for c in here)
        rows = []
        for cell in sorted(here, key=lambda c: (trees.index(c["tree"]), arms.index(c["arm"]))):
            shares = [figure(f) for f in cell["acceptance_by_depth"]]
            rows.append([cell["tree"], cell["arm"], *shares, *[""] * (deepest - len(shares))])
        head = ["tree", "system", *(str(d) for d in range(1, deepest + 1))]
        text += grid(head, rows, f"Accepted at each depth, of the paths that got there, {where}")
    return text
