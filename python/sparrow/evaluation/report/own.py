"""Markdown and pictures of prompts of one's own, from their JSON alone: figures over prompts, and the prompts."""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from sparrow.evaluation.cells import acceptance_by_depth, interval, quotient, speed_ratio
from sparrow.evaluation.own import depth_of
from sparrow.evaluation.report.curves import acceptance
from sparrow.evaluation.report.pivots import figure, grid
from sparrow.evaluation.report.speed import speed_picture
from sparrow.evaluation.tables import BASELINES

SHOWN = 40  # prompts and mismatches with a row of their own


def cells(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One per system and temperature; of prompts whose answer had a token to decode."""
    s, made = result["settings"], []
    of_all = [{"name": b.name, "kind": b.kind, "arm": b.arm, "tree": b.tree} for b in BASELINES] + s["systems"]
    length = round(statistics.median(row["visual_tokens"] for row in result["rows"]))
    for temperature in s["temperatures"]:
        at = [row["at"][f"{temperature:g}"] for row in result["rows"]]
        at = [
            systems for systems in at if systems["plain"]["decode_tokens"] and systems["transformers"]["decode_tokens"]
        ]
        for system in of_all if at else ():
            own = [systems[system["name"]] for systems in at]
            made.append(_cell(system, own, at) | {"length": length, "temperature": temperature})
    return made


def _cell(system: dict[str, Any], own: Sequence[dict], at: Sequence[dict]) -> dict[str, Any]:
    emitted = [x["emitted"] for x in own]
    cell: dict[str, Any] = {"system": system["name"], "arm": system["arm"], "tree": system["tree"]}
    cell["tau"] = interval([(sum(e), len(e)) for e in emitted], quotient)
    cell["counts"] = {"timed": len(own)}
    seconds = [statistics.median(x["decode_seconds"]) for x in own]
    cell["per_clip"] = {"tokens": [x["decode_tokens"] for x in own], "decode_seconds": seconds}
    if system["kind"] == "sparrow":
        cell["acceptance_by_depth"] = acceptance_by_depth(emitted, depth_of(system, emitted))
    for other in BASELINES:
        theirs = [systems[other.name] for systems in at]
        for name, tokens, times in (("dsr", "decode_tokens", "decode_seconds"), ("esr", "tokens", "seconds")):
            rows = [
                (a[tokens], statistics.median(a[times]), b[tokens], statistics.median(b[times]))
                for a, b in zip(own, theirs, strict=True)
            ]
            cell[f"{name}_{other.name}"] = interval(rows, speed_ratio)
    checked = [x for x in own if "identical" in x]
    if checked:
        cell["identical"] = f"{sum(x['identical'] for x in checked)} of {len(checked)}"
        wrong = sum(len(x.get("mismatches", ())) for x in checked)
        if all(x["identical"] or "mismatches" in x for x in checked):
            cell["match"] = f"{1 - wrong / max(1, sum(x['tokens'] for x in checked)):.2%}"
    return cell


def clips_view(result: dict[str, Any], folder: pathlib.Path, stem: str) -> str:
    """Figures by system, acceptance by depth, mismatches with their margins, and every prompt."""
    s, found = result["settings"], cells(result)
    text = _header(result)
    if not found:
        return text + "No answer had a token to decode.\n"
    head = ["T", "system", "tree", "tau", "decode vs transformers", "decode vs plain loop", "whole vs transformers",
            "whole vs plain loop", "identical", "tokens matched"]  # fmt: skip
    keys = ("tau", "dsr_transformers", "dsr_plain", "esr_transformers", "esr_plain")
    text += grid(head, [
        [f"{c['temperature']:g}", c["arm"], c["tree"] or "-", *(figure(c[k]) for k in keys), c.get("identical", ""),
         c.get("match", "")] for c in found
    ])  # fmt: skip
    drafting = [c for c in found if c.get("acceptance_by_depth")]
    if drafting:
        deepest = max(len(c["acceptance_by_depth"]) for c in drafting)
        rows = []
        for c in drafting:
            shares = [figure(f) for f in c["acceptance_by_depth"]]
            rows.append([f"{c['temperature']:g}", c["arm"], c["tree"], *shares, *[""] * (deepest - len(shares))])
        title = "Accepted at each depth, of the paths that got there"
        text += grid(["T", "system", "tree", *(str(d) for d in range(1, deepest + 1))], rows, title)
        shown = {"settings": s, "cells": drafting}
        acceptance(shown, folder / f"{stem}_depth.png")
    speed_picture({"settings": s, "cells": found}, folder / f"{stem}_speed.png", f"{len(result['rows'])} prompts")
    return text + _mismatches(result) + _prompts(result)


def _header(result: dict[str, Any]) -> str:
    s, rows = result["settings"], result["rows"]
    visual = [row["visual_tokens"] for row in rows]
    return (
        f"Prompts of {s['clips']}: {len(rows)}, with {min(visual)} to {max(visual)} visual tokens, at most "
        f"{s['max_new_tokens']} new ones. Target {s['target']}, {s['dtype']}; times: median of {s['runs']} runs on one "
        f"prompt, systems in turns, {s['clock']} clock. tau: tokens per round after the first token. Brackets: 95 % "
        "bootstrap interval over prompts. Identical: to transformers' greedy tokens; at T > 0 to plain decoding with "
        "the same seed, and times there compare with transformers' own, other texts.\n\n"
    )


def _mismatches(result: dict[str, Any]) -> str:
    rows = [
        [str(row["clip"] + 1), name, str(m["index"]), f"{m['ours']} for {m['reference']}", f"{m['margin']:.3g}",
         f"{m['top2_margin']:.3g} of {m['max_logit']:.3g}", "yes" if m["near_tie"] else "no"]
        for row in result["rows"] for systems in row["at"].values() for name, made in systems.items()
        for m in made.get("mismatches", ())
    ]  # fmt: skip
    head = ["prompt", "system", "token", "ours", "margin", "top-2 margin", "near tie"]
    more = f"\nand {len(rows) - SHOWN} more\n\n" if len(rows) > SHOWN else ""
    return grid(head, rows[:SHOWN], "Tokens that are not transformers'") + more if rows else ""


def _prompts(result: dict[str, Any]) -> str:
    names, first = [s["name"] for s in result["settings"]["systems"]], f"{result['settings']['temperatures'][0]:g}"
    rows = []
    for row in result["rows"][:SHOWN]:
        at = row["at"][first]
        taus = [f"{sum(e) / len(e):.2f}" if (e := at[name]["emitted"]) else "-" for name in names]
        rows.append([str(row["clip"] + 1), str(row["visual_tokens"]), str(at["transformers"]["tokens"]), *taus])
    return grid(["prompt", "visual tokens", "new tokens", *names], rows, f"tau of each prompt, T = {first}")
