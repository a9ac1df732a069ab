"""Intervals: everything reported is a ratio of sums over clips, and clips are what is resampled."""

from collections.abc import Callable, Sequence

import numpy as np

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
