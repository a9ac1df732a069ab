"""The simulator's own test: every primitive against a scalar model, every complaint it must raise."""

import re

import pytest

from tests.hostsim.library import HERE, cuda_include, run_program

MAX_LINES = 500


@pytest.mark.skipif(cuda_include() is None, reason="no CUDA toolkit headers here")
@pytest.mark.parametrize("mode", ["value", "race"])
def test_selftest(mode):
    done = run_program("selftest", mode)
    found = re.fullmatch(r"(\d+) checks, 0 failed", done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0 and found and int(found.group(1)) > 50_000, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_simulator_stays_small():
    """It models what our kernels use; TMA, wgmma, clusters and timing are not to grow in here."""
    assert len((HERE / "cuda_host.hpp").read_text().splitlines()) <= MAX_LINES


@pytest.mark.skipif(cuda_include() is None, reason="no CUDA toolkit headers here")
def test_instructions_do_to_known_bits_what_the_committed_text_says():
    done = run_program("conformance", "value")
    assert done.returncode == 0 and done.stdout == (HERE / "conformance.txt").read_text()
