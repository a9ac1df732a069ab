"""Ratios from a pytest-benchmark JSON: eager / sparrow per group, a committed result file, and a picture.

    python -m bench.report build/bench.json [--save bench/results/cpu_ops.json] [--plot docs/cpu_ops.png] [--table]

A ratio compares two timings of one process; absolute CPU times are not worth keeping.
"""

import argparse
import json
import sys
from pathlib import Path

from sparrow.evaluation.report.pictures import panels, write
from sparrow.files import write_json
from sparrow.provenance import provenance

OURS = "sparrow"


def ratios(data: dict) -> dict[str, dict[str, object]]:
    """Per group: each other implementation's time over ours, by minimum and by median; above 1 we are faster."""
    groups: dict[str, dict[str, dict]] = {}
    for bench in data["benchmarks"]:
        groups.setdefault(bench["group"], {})[bench["params"]["impl"]] = bench
    result: dict[str, dict[str, object]] = {}
    for group, by_impl in groups.items():
        if OURS not in by_impl:
            continue
        ours, row = by_impl[OURS]["stats"], {}
        for impl, other in by_impl.items():
            if impl != OURS:
                row[impl] = {k: round(other["stats"][k] / ours[k], 3) for k in ("min", "median")}
        result[group] = {"ratio": row, "sparrow_us": round(ours["min"] * 1e6, 2), **by_impl[OURS].get("extra_info", {})}
    return result


def origin(data: dict) -> dict[str, object]:
    """What a reader needs to repeat the numbers."""
    cpu = data["machine_info"]["cpu"]
    made = provenance("make bench") | {"date": data["datetime"], "threads": 1}
    return made | ({"cpu": cpu["brand_raw"]} if "brand_raw" in cpu else {})


def show(result: dict[str, dict]) -> None:
    """One line per group."""
    for group, row in result.items():
        shown = ", ".join(f"{impl} {r['min']:.2f}x (median {r['median']:.2f}x)" for impl, r in row["ratio"].items())
        more = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("ratio", "sparrow_us"))
        print(f"{group:78s} {shown}{'  ' + more if more else ''}")


def table(result: dict[str, dict]) -> str:
    """Markdown: per operator the range of its ratios over all shapes, by minimum, and any bandwidth share."""
    lines = ["| operator | shapes | ratio to eager, lowest to highest | share of read bandwidth |", "|---|---|---|---|"]
    by_op: dict[str, list[dict]] = {}
    for group, row in result.items():
        if "eager" in row["ratio"]:
            by_op.setdefault(group.split()[0], []).append(row)
    for op, rows in sorted(by_op.items()):
        values = sorted(row["ratio"]["eager"]["min"] for row in rows)
        shares = [row["fraction"] for row in rows if "fraction" in row]
        share = f"{min(shares):.0%} to {max(shares):.0%}" if shares else ""
        lines.append(f"| `{op}` | {len(rows)} | {values[0]:.1f} to {values[-1]:.1f} | {share} |")
    return "\n".join(lines)


def plot(result: dict[str, dict], path: Path) -> None:
    """Every group's ratio by minimum, one bar, log scale; the line is 1."""
    rows = [(g, r["ratio"]["eager"]["min"]) for g, r in result.items() if "eager" in r["ratio"]]
    by_op: dict[str, list[float]] = {}
    for group, ratio in rows:
        by_op.setdefault(group.split()[0], []).append(ratio)
    names = sorted(by_op, key=lambda n: min(by_op[n]))
    figure, all_axes = panels(1, 1, 0.28 * len(names) + 0.3)
    axes = all_axes[0][0]
    for y, name in enumerate(names):
        low, high = min(by_op[name]), max(by_op[name])
        axes.plot([low, high], [y, y], color="#4c78a8", lw=5, solid_capstyle="round")
        axes.plot(by_op[name], [y] * len(by_op[name]), "o", color="#1f3d5c", ms=3.5)
    axes.axvline(1, color="#c44", lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("times as fast as the eager PyTorch composition (CPU, one thread; a dot is one shape)")
    axes.grid(axis="y", visible=False)
    write(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="pytest-benchmark's JSON, or a saved result (for --plot)")
    parser.add_argument("--save", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    parser.add_argument("--table", action="store_true", help="print the README's Markdown table")
    arguments = parser.parse_args()
    data = json.loads(arguments.file.read_text())
    saved = {"provenance": origin(data), "results": ratios(data)} if "benchmarks" in data else data
    show(saved["results"])
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.save, saved, indent=1)
    if arguments.table:
        print(table(saved["results"]))
    if arguments.plot:
        plot(saved["results"], arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
