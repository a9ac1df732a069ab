"""The roofline projection: a round's cost against numbers worked out by hand."""

import pytest

from bench.projection import DRAFTS, Device, Draft, Shape, markdown, round_in_steps
from sparrow.evaluation.tables import OTHERS, TABLES
from sparrow.tree import TreeConfig

SMALL = Shape(hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4, ffn=16, vocab=32)


def test_bandwidth_alone():
    """Bytes: a layer 2 * (8 * 4 * 6 + 3 * 8 * 16) = 1152, a row 16 per layer, head 512, FC 256."""
    device, tree = Device("memory", 1.0, 1e30), TreeConfig(4, 2, 2)
    step = 2 * (1152 + 16 * 110) + 512
    text = (step + 2 * (1152 + 16 * 10 + 512 + 256)) / step
    assert round_in_steps(device, SMALL, tree, Draft(vocab=32), 100, 10) == pytest.approx(text)
    video = (step + 2 * (1152 + 16 * 110 + 512 + 256)) / step
    assert round_in_steps(device, SMALL, tree, Draft(video=1.0, vocab=32), 100, 10) == pytest.approx(video)
    itself = (step + 2 * (2 * (1152 + 16 * 20) + 512)) / step
    assert round_in_steps(device, SMALL, tree, Draft(0.1, 2, 32), 100, 10) == pytest.approx(itself)


def test_arithmetic_alone():
    """Five rows cost five times one row, and both draft levels their two rows."""
    device, tree = Device("compute", 1e30, 1.0), TreeConfig(4, 2, 2)
    row = 2 * (2 * 576 + 4 * 8 * 110) + 2 * 256
    level = 2 * (2 * 576 + 4 * 8 * 10 + 2 * 256 + 2 * 128)
    assert round_in_steps(device, SMALL, tree, Draft(vocab=32), 100, 10) == pytest.approx((5 * row + 2 * level) / row)


def test_table_names_what_it_is():
    cell = {
        "length": 64,
        "temperature": 0.0,
        "system": "MSD 25-5-8",
        "arm": "MSD",
        "tree": "25-5-8",
        "tau": {"value": 4.0},
    }
    others = {**cell, "length": 128}, {**cell, "tree_choice": []}, {**cell, "arm": "plain", "tree": None}
    text = markdown({"cells": [cell, *others]}, "25-5-8", 64)
    assert text.startswith("A projection, no measurement") and text.count("| MSD |") == 2 and "plain |" not in text


def test_every_drafter_of_the_main_table_has_a_cost():
    assert set(DRAFTS) == {arm.label for arm in TABLES["main"].arms} | {OTHERS["specvlm"].arm}
