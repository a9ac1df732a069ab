"""Two minutes of 32 requests at a time: nothing is lost, and nothing grows that does not without a drafter."""

import pathlib
import time

import pytest

from sparrow.engines.vllm_worker import Engine
from tests.vllm.cases import CASES, OPTIONS, TARGET, asked, drafting, on_a_cpu, prompt_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not asked(), reason="vLLM has an environment of its own: `make test-vllm`"),
]
SECONDS, AT_A_TIME, REQUESTS = 120, 32, 96
SLACK = 4 * 1024  # KiB


def resident(process: int) -> int:
    """KiB of memory a process holds."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def passes(engine, asked_for, sampling, want, enough) -> list[int]:
    """KiB held after each pass of the requests, whose answers are `want`, until `enough(passes)`."""
    held: list[int] = []
    while not held or not enough(len(held)):
        again = engine.run(asked_for, sampling, AT_A_TIME)
        assert [one.ids for one in again.done] == want, len(held)
        held.append(resident(engine.process.pid))
    return held


def test_two_minutes_of_32_at_a_time(monkeypatch):
    """Prompts with videos, images and text alone, of lengths that differ, and more of them than the cache's blocks.

    oneDNN keeps what it made for the last 1024 shapes of matrix products, vLLM's and the drafter's; that would grow for
    some 20 passes, by 66 MiB. Here it keeps a few, and what is left of growth is somebody's fault.
    """
    on_a_cpu(monkeypatch)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4")
    prompts = [prompt_of(case, TARGET) for case in CASES]
    sampling = [{"temperature": 0, "max_tokens": 20 + 7 * (i % 10)} for i in range(REQUESTS)]
    asked_for = [prompts[i % len(prompts)] for i in range(REQUESTS)]
    options = {k: v for k, v in OPTIONS.items() if k != "disable_log_stats"} | {"max_num_seqs": AT_A_TIME}
    options |= {"enable_prefix_caching": True, "num_gpu_blocks_override": 400}
    with Engine(TARGET, options | drafting(adaptive=True)) as engine:
        first = engine.run(asked_for, sampling, AT_A_TIME)
        assert len(first.done) == REQUESTS and first.counters["accepted"] > 0
        want, end = [one.ids for one in first.done], time.monotonic() + SECONDS
        held = passes(engine, asked_for, sampling, want, lambda n: n > 3 and time.monotonic() > end)
    with Engine(TARGET, options) as engine:
        engine.run(asked_for, sampling, AT_A_TIME)
        alone = passes(engine, asked_for, sampling, want, lambda n: n == len(held))
    told = [[kib >> 10 for kib in kept] for kept in (held, alone)]
    print(f"{len(held)} passes of {REQUESTS} requests, {AT_A_TIME} at a time; MiB held, and by vLLM alone: {told}")
    assert held[-1] - held[0] < alone[-1] - alone[0] + SLACK
