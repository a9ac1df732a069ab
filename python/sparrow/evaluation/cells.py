"""A cell: one system at one visual length and temperature, its figures with intervals over clips, ready for JSON."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparrow.decoding.stats import STAGES
from sparrow.evaluation.systems import OURS, Run, System
from sparrow.evaluation.tables import BASELINES, Plan, reference
from sparrow.tree import TreeConfig

Runs = dict[str, list[list[Run]]]  # system -> clip -> run


def cell(
    plan: Plan, system: System, length: int, temperature: float, runs: Runs, replayed: list[list[int]] | None
) -> dict[str, Any]:
    """The figures of a system.

    Args:
        system: with the tree that was used.
        runs: of all systems.
        replayed: tokens per round and clip, for a system with a drafter; else tau is from live runs.
    """
    own = runs[system.name]
    live = [r[0].emitted for r in own]
    emitted = live if replayed is None else replayed
    made: dict[str, Any] = {"length": length, "temperature": temperature}
    made |= {"system": system.name, "arm": system.arm, "tree": system.tree}
    made["counts"] = {
        "clips": len(emitted), "live": len(own), "timed": plan.timed, "runs": plan.runs,
        "rounds": sum(map(len, emitted)), "tokens": sum(map(sum, emitted)),
    }  # fmt: skip
    made["tau"] = interval([(sum(e), len(e)) for e in emitted], quotient)
    made["identical"] = identical(plan, system, runs, temperature)
    if replayed is not None:
        made["acceptance_by_depth"] = acceptance_by_depth(replayed, TreeConfig.parse(str(system.tree)).depth)
        same = sum(a == b for a, b in zip(live, replayed, strict=False))
        made["replay_equals_live"] = {"clips": same, "of": len(live)}
    made["per_clip"] = {"tokens": [sum(e) for e in emitted], "rounds": [len(e) for e in emitted]}
    if plan.timed:
        made |= speeds(system, runs, plan.timed)
        made["per_clip"] |= times(own[: plan.timed])
    return made


def times(runs: Sequence[Sequence[Run]]) -> dict[str, Any]:
    """Medians over each clip's runs: seconds, decode_seconds, and per stage where the loop is ours and no round was
    replayed as a whole.
    """
    made: dict[str, Any] = {name: [round(median(of, name), 5) for of in runs] for name in ("seconds", "decode_seconds")}
    if runs[0][0].stages and not any("replay" in r.stages for of in runs for r in of):
        made["stage_seconds"] = {
            stage: [round(statistics.median(r.stages[stage] for r in of), 6) for of in runs] for stage in STAGES
        }
    return made


def speeds(system: System, runs: Runs, timed: int) -> dict[str, Any]:
    """DSR and ESR against both baselines: tokens per second after the first token, and over the whole call."""
    figures: dict[str, Any] = {}
    for other in BASELINES:
        both = list(zip(runs[system.name][:timed], runs[other.name][:timed], strict=True))
        decode = [(*_decode(a), *_decode(b)) for a, b in both]
        whole = [(*_whole(a), *_whole(b)) for a, b in both]
        figures[f"dsr_{other.name}"] = interval(decode, speed_ratio)
        figures[f"esr_{other.name}"] = interval(whole, speed_ratio)
    return figures


def _decode(runs: Sequence[Run]) -> tuple[float, float]:
    return runs[0].decode_tokens, median(runs, "decode_seconds")


def _whole(runs: Sequence[Run]) -> tuple[float, float]:
    return len(runs[0].tokens), median(runs, "seconds")


def median(runs: Sequence[Run], name: str) -> float:
    """Over the runs of one clip."""
    return statistics.median(getattr(r, name) for r in runs)


def identical(plan: Plan, system: System, runs: Runs, temperature: float) -> dict[str, Any] | None:
    """Live runs whose tokens are the reference's (plan.reference), over the first `live` clips.

    None for transformers' own systems, and for the reference itself.
    """
    other = reference(temperature)
    if system.kind not in OURS or system == other:
        return None
    pairs = list(zip(runs[system.name][: plan.live], runs[other.name], strict=True))
    same = sum(all(run.tokens == theirs[0].tokens for run in ours) for ours, theirs in pairs)
    return {"clips": same, "of": len(pairs), "to": other.name}


def faults(result: dict[str, Any]) -> list[str]:
    """Where a live run gave other tokens than the reference, or other rounds than the replay; none is right."""
    found = []
    for made in result.get("cells", ()):
        for name in ("identical", "replay_equals_live"):
            check = made.get(name)
            if check is not None and check["clips"] != check["of"]:
                at = f"{made['system']} at {made['length']} visual tokens, T={made['temperature']:g}"
                found.append(f"{at}: {name} on {check['clips']} of {check['of']} clips")
    return found


RESAMPLES, LEVEL, SEED = 2000, 0.95, 0


def interval(rows: Sequence[Sequence[float]], ratio: Callable[[np.ndarray], np.ndarray]) -> dict[str, float | None]:
    """A figure with its bootstrap interval (percentiles; Efron and Tibshirani 1993, chapter 13).

    Args:
        rows: [clips, c], what is summed over clips.
        ratio: from column sums [..., c] to the figure [...].

    Returns:
        {"value", "low", "high"}; low and high are None for fewer than two clips, value where it is not defined (0 / 0).
    """
    table = np.asarray(rows, float)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"rows must be [clips, columns] with at least one clip, got shape {table.shape}")
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(ratio(table.sum(0)))
        if not np.isfinite(value):
            return {"value": None, "low": None, "high": None}
        if len(table) < 2:
            return {"value": value, "low": None, "high": None}
        draws = np.random.default_rng(SEED).integers(0, len(table), (RESAMPLES, len(table)))
        values = ratio(table[draws].sum(1))
    low, high = np.nanquantile(values[np.isfinite(values)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def quotient(sums: np.ndarray) -> np.ndarray:
    """sums[0] / sums[1]."""
    return sums[..., 0] / sums[..., 1]


def speed_ratio(sums: np.ndarray) -> np.ndarray:
    """Of (tokens, seconds, reference's tokens, reference's seconds): our tokens per second over the reference's."""
    return sums[..., 0] / sums[..., 1] / (sums[..., 2] / sums[..., 3])


def acceptance_by_depth(emitted: Sequence[Sequence[int]], depth: int) -> list[dict[str, float | None]]:
    """Of the rounds whose path reached depth d, the share that went on to d + 1, d = 0 .. depth - 1.

    A round that emitted n tokens accepted n - 1 drafted ones. Each clip's last round is left out: the output's end cut
    it short.
    """
    figures = []
    for d in range(depth):
        rows = [(sum(n - 1 > d for n in rounds[:-1]), sum(n - 1 >= d for n in rounds[:-1])) for rounds in emitted]
        figures.append(interval(rows, quotient))
    return figures
