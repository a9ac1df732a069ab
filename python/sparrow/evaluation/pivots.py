"""Markdown tables with one row per system and one column per visual length, tree or temperature."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sparrow.evaluation.statistics import interval, quotient, speed_ratio

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


def paired_tau(ours: Sequence[Cell], theirs: Sequence[Cell]) -> dict[str, float | None]:
    """tau over tau, the interval paired: the same clips are drawn for both. Several cells: their sums, clip by clip.

    Clips that one of the two has not are left out.
    """
    rows = list(zip(*(sums(side, name) for side in (ours, theirs) for name in ("tokens", "rounds")), strict=False))
    return interval(rows, speed_ratio)


def sums(cells: Sequence[Cell], name: str) -> list[float]:
    """Per clip, over the cells."""
    return [sum(values) for values in zip(*(c["per_clip"][name] for c in cells), strict=False)]


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
        return "auto: " + ", ".join(trees)
    return trees[0] or "-"


def options(result: Result) -> str:
    """tau of every arm at every point and tree; the ratio to the first arm's; what it took to train it."""
    cells = result["cells"]
    columns = [
        (tree, temperature, length)
        for tree in distinct(cells, "tree")
        for temperature in sorted(distinct(cells, "temperature"))
        for length in sorted(distinct(only(cells, temperature=temperature), "length"))
    ]
    arms = distinct(cells, "arm")
    folders = {s["arm"]: s["drafter"] for s in result["settings"]["systems"]}
    at = lambda arm, c: only(cells, arm=arm, tree=c[0], temperature=c[1], length=c[2])  # noqa: E731
    names = [f"{tree}, T={temperature:g}, {length}" for tree, temperature, length in columns]
    made = [[arm, *_training(result["training"].get(folders[arm]))] for arm in arms]
    text = grid(["arm", "what changed", "seconds", "steps", "seed"], made, "The arms")
    rows = [[arm, *(figure(_tau(at(arm, c))) for c in columns)] for arm in arms]
    text += grid(["arm", *names], rows, "tau: tree, temperature, visual tokens")
    whole, base = _greedy(cells), arms[0]
    rows = []
    for arm in arms[1:]:
        ratios = [paired_tau(at(arm, c), at(base, c)) for c in columns]
        ratios += [paired_tau(of(arm), of(base)) for of in whole.values()]
        rows.append([arm, *(figure(ratio, 3) for ratio in ratios)])
    return text + grid(["arm", *names, *whole], rows, f"tau over that of {base}, paired over clips")


def _greedy(cells: list[Cell]) -> dict[str, Callable[[str], list[Cell]]]:
    """All greedy cells of an arm with a tree, under the name of their column."""
    return {
        f"{tree}, T=0, all": lambda arm, tree=tree: only(cells, arm=arm, tree=tree, temperature=0.0)  # type: ignore[misc]
        for tree in distinct(only(cells, temperature=0.0), "tree")
    }


def _tau(cells: Sequence[Cell]) -> dict[str, float | None]:
    return interval(list(zip(sums(cells, "tokens"), sums(cells, "rounds"), strict=True)), quotient)


def _training(record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return ["-"] * 4
    return [str(record["overrides"]), f"{record['seconds']:.0f}", str(record["steps"]), str(record["seed"])]
