"""Markdown and pictures of a table, from its JSON alone."""

import pathlib
from typing import Any

from sparrow.evaluation.hidden import hidden_table, settled_layer
from sparrow.evaluation.report.curves import acceptance, hidden, layer_cut, over_length, tau_by_tree, watching
from sparrow.evaluation.report.options import options_picture, options_table
from sparrow.evaluation.report.own import clips_view
from sparrow.evaluation.report.pivots import by_length, by_tree, figure, grid, header, tree_of
from sparrow.evaluation.report.speed import speed_picture
from sparrow.evaluation.report.stages import stage_picture, stage_tables
from sparrow.evaluation.visual import layer_table, watching_table

Result = dict[str, Any]
COLUMNS = {
    "tau": "tau",
    "dsr_transformers": "decode vs transformers",
    "dsr_plain": "decode vs plain loop",
    "esr_transformers": "whole vs transformers",
    "esr_plain": "whole vs plain loop",
}


def render(result: Result, folder: pathlib.Path) -> str:
    """The table as Markdown; its pictures go to folder/<table>*.png.

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
    if "dsr_transformers" in columns:
        speed_picture(result, folder / f"{stem}_speed.png")
    head = ["visual tokens", "T", "system", "tree", *columns.values(), "identical", "replay = live"]
    text = header(result)
    if any(cell["temperature"] > 0 for cell in result["cells"]) and "dsr_transformers" in columns:
        text += "At T > 0 transformers, prompt lookup too, draws other noise, and so other texts: compare our\n"
        text += "systems with our plain loop there, and prompt lookup with none.\n\n"
    return text + grid(head, rows)


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
    options_picture(result, folder / f"{stem}_ratio.png")
    return header(result) + options_table(result)


def stages_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    """Where the time goes; needs times."""
    if not result["settings"]["timed"]:
        raise ValueError(f"table {stem} is of times: timed must be at least 1, got 0")
    stage_picture(result, folder / f"{stem}_time.png")
    return header(result) + stage_tables(result)


def trees_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    """tau by tree, acceptance by depth; systems without a drafter are left out."""
    tau_by_tree(result, folder / f"{stem}_tau.png")
    acceptance(result, folder / f"{stem}_depth.png")
    return header(result) + by_tree(result)


def watch_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    """Accuracy by visual length and video."""
    watching(result, folder / f"{stem}.png")
    return _visual_header(result) + watching_table(result["rows"])


def layer_cut_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    """Accuracy by the first layer without video."""
    layer_cut(result, folder / f"{stem}.png")
    return _visual_header(result) + layer_table(result["rows"])


def _visual_header(result: Result) -> str:
    s = result["settings"]
    where = f"split {s['split']}, {s['clips']} clips, {', '.join(map(str, s['lengths']))} visual tokens"
    text = f"Table {s['table']}. Target {s['target']}, {s['dtype']}, {where}. "
    return text + "Share of words right, teacher-forced, by class. Brackets: 95 % bootstrap interval over clips.\n\n"


def hidden_view(result: Result, folder: pathlib.Path, stem: str) -> str:
    """What each layer does, and from where on text rows have settled."""
    hidden(result, folder / f"{stem}.png")
    s, rows = result["settings"], result["rows"]
    text, last = f"Hidden states of {s['target']} (weights {s['weights']}), {s['dtype']}: ", len(rows) - 1
    text += (
        f"{len(s['clips'])} answers of {sum(s['answer_tokens'])} tokens in all over {sum(s['visual_tokens'])} visual "
    )
    text += f"tokens in all. {s['reproduced']:.1%} of the answers' tokens came again in the one whole-sequence pass. "
    text += "Brackets: 95 % bootstrap interval over clips.\n\n"
    words = {"agreement": "predict what the last layer does", "cut": "are the same without video behind that layer"}
    for name, what in words.items():
        at = settled_layer(rows, name)
        text += f"95 % of the tokens {what} from layer {'-' if at is None else at} of {last} on.\n"
    return text + "\n" + hidden_table(rows)


VIEWS = {
    "main": main_view, "length": length_view, "ablation": length_view, "stages": stages_view, "trees": trees_view,
    "options": options_view, "imported": length_view, "watch": watch_view, "layer_cut": layer_cut_view,
    "hidden": hidden_view, "clips": clips_view,
}  # fmt: skip
