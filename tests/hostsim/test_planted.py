"""A kernel with one defect planted at a time: which build says so, and with what words."""

import re

import pytest

from tests.hostsim.library import cuda_include, run_program

pytestmark = pytest.mark.skipif(cuda_include() is None, reason="no CUDA toolkit headers here")

FLIGHT = r"access .* has in flight|thread ends with cp.async in flight"
RACE = r"shared-memory race: .*planted.cu:\d+ is not ordered after .*planted.cu:\d+"

REPORTED_UNDER_EVERY_SCHEDULE = [
    ("value", "no_await", "thread ends without having waited for the kernel before"),
    ("value", "no_wait", "wrong values|in flight"),
    ("value", "late_wait", "wrong values"),
    ("value", "divergent_sync", "divergent __syncthreads|deadlock"),
    ("value", "wrong_mask", "wrong values"),
    ("race", "no_wait", FLIGHT),
    ("race", "late_wait", FLIGHT),
    ("race", "no_sync_ready", f"{RACE}|{FLIGHT}"),
    ("race", "no_sync_reuse", f"{RACE}|{FLIGHT}"),
    ("race", "no_sync_combine", RACE),
    ("race", "divergent_sync", "divergent __syncthreads|deadlock|race|in flight"),
]


def reports(plant: str, mode: str) -> list[str]:
    done = run_program("planted", mode, plant)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("mode", ["value", "race", "asan"])
def test_without_a_defect_nothing_is_reported(mode):
    assert reports("none", mode) == ["right"] * 8


@pytest.mark.parametrize(("mode", "plant", "words"), REPORTED_UNDER_EVERY_SCHEDULE)
def test_reported_under_every_schedule(mode, plant, words):
    for line in reports(plant, mode):
        assert re.search(words, line), line


@pytest.mark.parametrize("plant", ["no_sync_ready", "no_sync_reuse", "no_sync_combine"])
def test_a_missing_barrier_gives_wrong_values_under_some_schedule(plant):
    assert any(re.search("wrong values|in flight", line) for line in reports(plant, "value"))


@pytest.mark.parametrize("plant", ["no_bounds_check", "shared_overrun"])
def test_asan_reports_accesses_out_of_bounds(plant):
    done = run_program("planted", "asan", plant)
    assert done.returncode not in (0, 2) and "AddressSanitizer" in done.stderr, done.stdout + done.stderr[-2000:]


def test_an_unknown_defect_is_refused():
    assert run_program("planted", "value", "nonsense").returncode == 2
