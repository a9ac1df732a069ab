"""Tables and pictures of an evaluation, from its JSON alone."""

import pathlib
from collections.abc import Iterable
from typing import Any

Cell = dict[str, Any]
COLUMNS = {
    "tau": "tau",
    "dsr_transformers": "decode vs transformers",
    "dsr_plain": "decode vs plain loop",
    "esr_transformers": "whole vs transformers",
    "esr_plain": "whole vs plain loop",
}


def markdown(result: dict[str, Any]) -> str:
    """One row per cell; figures with their 95 % bootstrap interval over clips."""
    settings = result["settings"]
    lines = [
        f"Target {settings['target']}, {settings['dtype']}, split {settings['split']}; tau over {settings['clips']}"
        f" clips, identity over {settings['live']}, times over {settings['timed']} (median of {settings['runs']} runs,"
        f" one thread, {settings['clock']} clock), seed {settings['seed']}; brackets: 95 % bootstrap interval.",
        "",
        "| visual tokens | T | system | " + " | ".join(COLUMNS.values()) + " | identical | replay = live |",
        "|---" * (len(COLUMNS) + 5) + "|",
    ]
    for cell in sorted(result["cells"], key=lambda c: (c["length"], c["temperature"])):
        figures = " | ".join(figure(cell[name]) for name in COLUMNS)
        checks = f"{_share(cell['identical'])} | {_share(cell.get('replay_equals_live'))}"
        lines.append(f"| {cell['length']} | {cell['temperature']:g} | {_name(cell)} | {figures} | {checks} |")
    return "\n".join(lines) + "\n"


def figure(value: dict[str, float | None]) -> str:
    """2.41 [2.30, 2.52]."""
    if value["value"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['value']:.2f}"
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _name(cell: Cell) -> str:
    """The system; with the tree where it was chosen."""
    return cell["system"] + (f" ({cell['tree']})" if "tree_choice" in cell else "")


def _share(count: dict[str, Any] | None) -> str:
    return "" if count is None else f"{count['clips']} of {count['of']}"


def plots(result: dict[str, Any], folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Writes tau by length, decode speed-up by length and acceptance by depth, one panel per temperature each."""
    by_length = [
        ("tau", "tau", "tokens per round (tau)", None),
        ("speed", "dsr_transformers", "decoding speed over transformers' generate", 1.0),
    ]
    files = []
    for name, key, label, line in by_length:
        figure_, axes = _panels(result)
        for axis, temperature in axes:
            for number, system in enumerate(_systems(result)):
                _by_length(axis, number, system, _cells(result, temperature, system), key)
            if line is not None:
                axis.axhline(line, color="0.4", lw=1)
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
        files.append(_save(figure_, axes, folder / f"{stem}_{name}.png"))
    figure_, axes = _panels(result)
    for axis, temperature in axes:
        _depths(axis, [c for c in result["cells"] if c["temperature"] == temperature and "acceptance_by_depth" in c])
    files.append(_save(figure_, axes, folder / f"{stem}_depth.png"))
    return files


def _systems(result: dict[str, Any]) -> list[str]:
    """In order, without transformers: it is the reference."""
    return [s for s in dict.fromkeys(c["system"] for c in result["cells"]) if s != "transformers"]


def _cells(result: dict[str, Any], temperature: float, system: str) -> list[Cell]:
    cells = [c for c in result["cells"] if c["temperature"] == temperature and c["system"] == system]
    return sorted(cells, key=lambda c: c["length"])


def _panels(result: dict[str, Any]):
    """(figure, [(axis, temperature)])."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    temperatures = sorted({c["temperature"] for c in result["cells"]})
    drawn, axes = plt.subplots(
        1, len(temperatures), figsize=(0.6 + 5 * len(temperatures), 4), squeeze=False, layout="constrained"
    )
    pairs = list(zip(axes[0], temperatures, strict=True))
    for axis, temperature in pairs:
        axis.set_title(f"temperature {temperature:g}")
        axis.grid(alpha=0.3)
    return drawn, pairs


def _by_length(axis, number: int, system: str, cells: list[Cell], key: str) -> None:
    have = [c for c in cells if c[key]["value"] is not None]
    if not have:
        return
    x = [c["length"] * 1.03 ** (number - 1) for c in have]  # side by side, so that bars do not hide one another
    y = [c[key]["value"] for c in have]
    low, high = (
        [c[key][side] if c[key][side] is not None else c[key]["value"] for c in have] for side in ("low", "high")
    )
    errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
    axis.errorbar(x, y, yerr=errors, label=system, color=f"C{number}", marker="o", ms=4, capsize=3, lw=1.5)
    axis.set_xscale("log", base=2)
    lengths = [c["length"] for c in have]
    axis.set_xticks(lengths, [str(n) for n in lengths])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("visual tokens")


def _depths(axis, cells: Iterable[Cell]) -> None:
    cells = sorted(cells, key=lambda c: (c["system"], c["length"]))
    styles = dict.fromkeys(c["system"] for c in cells)
    lengths = sorted({c["length"] for c in cells})
    for cell in cells:
        points = [(d, f) for d, f in enumerate(cell["acceptance_by_depth"], 1) if f["value"] is not None]
        if not points:
            continue
        y = [f["value"] for _, f in points]
        low = [f["value"] - (f["low"] if f["low"] is not None else f["value"]) for _, f in points]
        high = [(f["high"] if f["high"] is not None else f["value"]) - f["value"] for _, f in points]
        style = ("-", "--", ":", "-.")[list(styles).index(cell["system"]) % 4]
        shift = 0.06 * (lengths.index(cell["length"]) - (len(lengths) - 1) / 2)
        axis.errorbar(
            [d + shift for d, _ in points], y, yerr=[low, high], label=f"{cell['system']}, {cell['length']}",
            color=f"C{lengths.index(cell['length'])}", ls=style, marker="o", ms=4, capsize=2, lw=1.3,
        )  # fmt: skip
    axis.set_xlabel("depth")
    axis.set_ylabel("accepted, of the paths that got there")
    axis.set_ylim(0, 1.02)
    deepest = max((len(c["acceptance_by_depth"]) for c in cells), default=1)
    axis.set_xticks(range(1, deepest + 1))


def _save(drawn, axes, file: pathlib.Path) -> pathlib.Path:
    from matplotlib import pyplot as plt

    axes[0][0].legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(file, dpi=130)
    plt.close(drawn)
    return file
