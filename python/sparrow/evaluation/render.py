"""Markdown and pictures of a table, from its JSON alone."""

import pathlib
from typing import Any

from sparrow.evaluation.pictures import over_length
from sparrow.evaluation.pivots import by_length, figure, grid, header, options, tree_of
from sparrow.evaluation.visual import layer_plot, layer_table, watching_table

Result = dict[str, Any]
COLUMNS = {
    "tau": "tau",
    "dsr_transformers": "decode vs transformers",
    "dsr_plain": "decode vs plain loop",
    "esr_transformers": "whole vs transformers",
    "esr_plain": "whole vs plain loop",
}


def render(result: Result, folder: pathlib.Path) -> str:
    """The table as Markdown; its pictures go to folder/<table>_*.png.

    Raises:
        ValueError: the result is of no table we know, or holds nothing yet.
    """
    name = result.get("settings", {}).get("table")
    if name not in VIEWS:
        raise ValueError(f"the result must be of a table ({', '.join(VIEWS)}), got {name!r}")
    if not (result.get("cells") or result.get("rows")):
        raise ValueError(f"the result of table {name} holds no finished cell")
    return VIEWS[name](result, folder, name)


def main_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    """One row per cell."""
    columns = {key: words for key, words in COLUMNS.items() if key in result["cells"][0]}
    rows = []
    for cell in sorted(result["cells"], key=lambda c: (c["length"], c["temperature"])):
        row = [str(cell["length"]), f"{cell['temperature']:g}", cell["arm"], tree_of([cell])]
        row += [figure(cell[key]) for key in columns]
        rows.append([*row, _share(cell["identical"]), _share(cell.get("replay_equals_live"))])
    over_length(result, "tau", COLUMNS["tau"], None, folder / f"{stem}_tau.png")
    if "dsr_transformers" in columns:
        over_length(result, "dsr_transformers", COLUMNS["dsr_transformers"], 1.0, folder / f"{stem}_speed.png")
    head = ["visual tokens", "T", "system", "tree", *columns.values(), "identical", "replay = live"]
    return header(result) + grid(head, rows)


def _share(count: dict[str, Any] | None) -> str:
    return "" if count is None else f"{count['clips']} of {count['of']}"


def length_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    """tau, and where there are times decoding speed, over the visual length."""
    over_length(result, "tau", "tokens per round (tau)", None, folder / f"{stem}_tau.png")
    text = header(result) + by_length(result, "tau", "tau")
    if result["settings"]["timed"]:
        label = COLUMNS["dsr_transformers"]
        over_length(result, "dsr_transformers", label, 1.0, folder / f"{stem}_speed.png")
        text += by_length(result, "dsr_transformers", f"DSR: {label}")
        text += by_length(result, "dsr_plain", "DSR over our plain loop")
    return text


def options_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    """tau of every option, and its ratio to the first one's."""
    return header(result) + options(result)


def watch_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    return watching_table(result["rows"])


def layer_cut_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    layer_plot(result["rows"], folder / f"{stem}.png")
    return layer_table(result["rows"])


VIEWS = {
    "main": main_view, "length": length_view, "ablation": length_view, "options": options_view,
    "watch": watch_view, "layer_cut": layer_cut_view,
}  # fmt: skip
