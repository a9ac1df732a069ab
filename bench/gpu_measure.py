"""What the GPU checks measure with: programs built for this GPU, ceilings, floors, times of captured calls."""

import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable

import torch

from bench.gpu_peers import describe
from bench.gpu_work import Work

ROOT = pathlib.Path(__file__).parents[1]


def operators() -> list[str]:
    """The operators' names: one module each."""
    return sorted(path.stem for path in (ROOT / "sparrow_ext" / "ops").glob("[a-z]*.py"))


def compiled(source: pathlib.Path, arch: str | None = None) -> Callable[[], str]:
    """Builds a CUDA program for this GPU (or `arch`, as "90a"); returns what runs it and gives its output."""
    if arch is None:
        arch = "".join(map(str, torch.cuda.get_device_capability()))
    out = ROOT / "build" / f"{source.stem}_sm_{arch}"
    out.parent.mkdir(exist_ok=True)
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-arch=sm_{arch}", "-I", ROOT / "csrc"]
    done = subprocess.run(["nvcc", *flags, source, "-o", out], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc cannot build {source.name}: {done.stderr[-2000:]}")
    return lambda: subprocess.run([out], capture_output=True, text=True, check=True).stdout


def ceilings() -> dict[str, float | str]:
    """This device's read bandwidth (GB/s) and bf16 matrix rates (TFLOP/s), measured: cuBLAS's, and that of mma.sync,
    the instruction our kernels use, which newer GPUs do not run at their full rate.
    """
    big = torch.empty(2 << 30, dtype=torch.int8, device="cuda").view(torch.int64)
    read = microseconds([lambda: torch.sum(big)], graph=False)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul = microseconds([lambda: a @ b], graph=False)
    rates = {"read_GB_per_s": big.nbytes / read / 1e3, "bf16_TFLOP_per_s": 2 * 8192**3 / matmul / 1e6}
    return rates | mma_ceiling()


def mma_ceiling() -> dict[str, float | str]:
    """The rate of mma.sync (bench/mma_ceiling.cu), or why there is none; the other measurements go on without it."""
    try:
        return {"mma_sync_TFLOP_per_s": float(compiled(ROOT / "bench" / "mma_ceiling.cu")())}
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # OSError: no nvcc
        return {"mma_sync missing": describe(error)}


def floors(work: Work, ceiling: dict[str, float | str], ours: float) -> dict[str, float]:
    """The least time of the case, us, and its share in ours: bytes at the read rate or FLOPs at cuBLAS's rate, and
    once more with the FLOPs at mma.sync's rate where that was measured.
    """
    rates = {"floor": "bf16_TFLOP_per_s", "mma_floor": "mma_sync_TFLOP_per_s"}
    found = {}
    for name, rate in rates.items():
        if rate in ceiling:
            least = max(work.bytes / float(ceiling["read_GB_per_s"]) / 1e3, work.flops / float(ceiling[rate]) / 1e6)
            found |= {f"{name}_us": least, f"share_of_{name}": least / ours}
    return found


def microseconds(calls: list[Callable[[], object]], rounds: int = 15, graph: bool = True) -> float:
    """Median time of one call. On CUDA over a graph of all of them: no call may read a tensor on the host then."""
    for call in calls[:3]:
        call()
    replay: Callable[[], object] = lambda: [call() for call in calls]  # noqa: E731
    if not torch.cuda.is_available():
        return _host_microseconds(replay, rounds) / len(calls)
    torch.cuda.synchronize()
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            replay()
        replay = captured.replay
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def _host_microseconds(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)
