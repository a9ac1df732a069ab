"""The rate at which an operator streams its weights, against the rate at which this thread reads memory at all."""

import functools
import time
from collections.abc import Callable

import torch


@functools.cache
def _buffer() -> torch.Tensor:
    """256 MiB: far more than the caches hold."""
    return torch.ones(32 << 20, dtype=torch.int64)


def _seconds(call: Callable[[], object]) -> float:
    """CPU time of this thread: other work on the machine does not count."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def report(benchmark, capsys, weights: torch.Tensor, call: Callable[[], object], rounds: int = 7) -> None:
    """Prints the rate at which `call` streams `weights` and its share of the read bandwidth; adds them to extra_info.

    Bandwidth: the fastest of some simple readers. Reads and calls take turns on one thread; the best of each counts.
    """
    buffer = _buffer()
    readers = [buffer.sum, buffer.view(torch.float32).sum]
    times = [(min(_seconds(reader) for reader in readers), _seconds(call)) for _ in range(rounds)]
    read, ours = (min(column) for column in zip(*times, strict=True))
    rate, ceiling = weights.nbytes / ours / 1e9, buffer.nbytes / read / 1e9
    benchmark.extra_info.update(GB_per_s=rate, read_GB_per_s=ceiling, fraction=rate / ceiling)
    with capsys.disabled():
        print(f"\n{benchmark.name}: {rate:.1f} of {ceiling:.1f} GB/s = {rate / ceiling:.2f}", end="")
