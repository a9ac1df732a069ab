"""The bootstrap against the exact distribution over all resamples of a few clips."""

import itertools

import numpy as np
import pytest

from sparrow.evaluation.cells import interval, quotient, speed_ratio

CLIPS = np.array([(1, 4), (9, 3), (4, 2), (30, 6), (2, 9), (11, 3)], float)
DRAWS = np.array(list(itertools.product(range(6), repeat=6)))  # all of them, with replacement


def close(a, b) -> bool:
    return np.allclose(a, b, rtol=0.03)


def test_interval_is_the_bootstrap_of_the_ratio_of_sums():
    got = interval(CLIPS, quotient)
    low, middle, high = np.quantile(quotient(CLIPS[DRAWS].sum(1)), [0.025, 0.95, 0.975])
    assert got["value"] == pytest.approx(57 / 27, abs=1e-4) and close([got["low"], got["high"]], [low, high])
    # the tolerance can tell it from one tail of 5 %, half of the clips, and a mean of ratios
    half, ratios = quotient(CLIPS[DRAWS[:, :3]].sum(1)), quotient(CLIPS)[DRAWS].mean(1)
    assert not close(middle, high) and not any(
        close(q, [low, high]) for q in (np.quantile(x, [0.025, 0.975]) for x in (half, ratios))
    )


def test_columns_of_a_clip_are_drawn_together():
    assert interval([(2 * x, x) for x in (1, 5, 30, 2)], quotient) == {"value": 2.0, "low": 2.0, "high": 2.0}
    rows = [(3 * x, 1.0, x, 1.0) for x in (1, 5, 30, 2)]
    assert interval(rows, speed_ratio) == {"value": 3.0, "low": 3.0, "high": 3.0}
