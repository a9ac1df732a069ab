"""Runs last: every kernel in csrc/kernels was executed by the tests before it."""

import pathlib
import re

import pytest

from tests.hostsim.library import ROOT, declared_kernels, launched_line

HERE = pathlib.Path(__file__).parent


def test_every_kernel_was_launched(simulator, request):
    ran = {item.path.name for item in request.session.items if "sim" in item.fixturenames}
    with_kernels = {p.name for p in HERE.glob("test_*.py") if re.search(r"\(sim\b", p.read_text())}
    missing = with_kernels - ran - {pathlib.Path(__file__).name}
    if missing:
        pytest.skip(f"counts only where all of tests/hostsim runs; not run: {sorted(missing)}")
    declared = declared_kernels()
    assert {"tree_mask_kernel", "kv_commit_kernel"} <= declared
    never = declared - simulator.launched()
    assert not never, f"no test in tests/hostsim launches {sorted(never)} (SPARROW_LAUNCH must spell the kernel's name)"


def test_every_kernel_begins_with_the_wait_for_the_one_before():
    """Programmatic launches: nothing may be read or written before that line."""
    waiting = set()
    for path in (ROOT / "csrc" / "kernels").glob("*.cu*"):
        waiting |= set(re.findall(r"(\w+_kernel)\([^{}]*\{\n  await_previous_kernel\(\);\n", path.read_text()))
    assert waiting == declared_kernels()


def test_summary_counts_declared_kernels_only():
    declared = {"a_kernel", "b_kernel", "c_kernel"}
    assert " 2 of 3 __global__ functions launched" in launched_line(declared, {"a_kernel", "c_kernel", "probe"})
    assert " none of 3 " in launched_line(declared, None)
