"""Everything that needs a GPU, in one command: builds nothing, checks, measures, writes one JSON, prints a table last.

    python -m bench.gpu_check [--dry-run] [--parts environment,launch,...] [--out bench/results/gpu.json]

Parts are independent and their results are saved one by one: a second call with --resume runs only what is missing.
"""

import argparse
import contextlib
import json
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import sparrow_ext
from bench.gpu_cases import Case, Sizes, Work, cases
from bench.gpu_peers import describe
from sparrow.files import write_text

ROOT = pathlib.Path(__file__).parents[1]
COPIES = 28
TARGETS = {  # microseconds on an H200, or share of the floor: what we are after
    ("hsr_project", "M=1"): "<= 14 us", ("hsr_project", "M=8"): "<= 14 us", ("hsr_project", "M=16"): "<= 14 us",
    ("draft_attention", "1536 rows, T=10"): "<= 4.5 us", ("kv_commit", "28 layers, path 4"): "<= 5 us",
    ("topk_lse", "10 x 152064"): "<= 6 us", ("tree_attention", "prefix 25000, N=16"): ">= 85 % of floor",
}  # fmt: skip


def environment() -> dict[str, object]:
    """Hardware, versions, commit."""
    run = lambda *command: subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: E731
    return {
        "gpu": torch.cuda.get_device_name(), "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
        "driver": run("nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"),
        "commit": run("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "dirty": bool(run("git", "-C", str(ROOT), "status", "--porcelain")),
        "operators with CUDA kernels": [n for n in operators() if sparrow_ext.has_cuda_kernels(n)],
        "command": " ".join(sys.argv),
    }  # fmt: skip


def operators() -> list[str]:
    """The operators' names: one module each."""
    return sorted(path.stem for path in (ROOT / "sparrow_ext" / "ops").glob("[a-z]*.py"))


def launch() -> dict[str, object]:
    """A launch through the statically linked cudart, on torch's current stream and inside a CUDA graph."""
    parent = torch.tensor([[-1, 0, 0, 1]], dtype=torch.int32, device="cuda")
    want = sparrow_ext.tree_mask(parent.cpu())[0]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        on_stream = sparrow_ext.tree_mask(parent)[0]
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sparrow_ext.tree_mask(parent)[0]
    graph.replay()
    torch.cuda.synchronize()
    return {"stream": torch.equal(on_stream.cpu(), want), "graph": torch.equal(captured.cpu(), want)}


def conformance() -> dict[str, object]:
    """Every ptx wrapper on the GPU beside its meaning on the CPU (needs nvcc and g++)."""
    source = ROOT / "tests" / "hostsim" / "conformance.cu"
    if not source.exists() or shutil.which("nvcc") is None:
        return {"skipped": "no nvcc, or no tests/hostsim/conformance.cu"}
    return {"equal": compiled(source)() == source.with_suffix(".txt").read_text()}


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


def tests() -> dict[str, object]:
    """The kernels' tests, on CUDA."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/hostsim", "-k", "cuda", "-x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return {"passed": done.returncode == 0, "last": done.stdout.strip().splitlines()[-1:], "tail": done.stdout[-3000:]}


def sanitizer() -> dict[str, object]:
    """memcheck and racecheck over a few small cases of every operator."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"skipped": "no compute-sanitizer"}
    result: dict[str, object] = {}
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, "-m", "bench.gpu_check", "--small"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
        result[kind] = {"clean": done.returncode == 0, "tail": done.stdout[-1500:]}
    return result


def ceilings() -> dict[str, float | str]:
    """This device's read bandwidth (GB/s) and bf16 matrix rates (TFLOP/s), measured: cuBLAS's, and that of mma.sync,
    the instruction our kernels use, which newer GPUs do not run at their full rate.
    """
    big = torch.empty(2 << 30, dtype=torch.int8, device="cuda").view(torch.int64)
    read = _microseconds([lambda: torch.sum(big)], graph=False)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul = _microseconds([lambda: a @ b], graph=False)
    rates = {"read_GB_per_s": big.nbytes / read / 1e3, "bf16_TFLOP_per_s": 2 * 8192**3 / matmul / 1e6}
    return rates | mma_ceiling()


def mma_ceiling() -> dict[str, float | str]:
    """The rate of mma.sync (bench/mma_ceiling.cu), or why there is none; the other measurements go on without it."""
    try:
        return {"mma_sync_TFLOP_per_s": float(compiled(ROOT / "bench" / "mma_ceiling.cu")())}
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # OSError: no nvcc
        return {"mma_sync missing": describe(error)}


def bench() -> dict[str, object]:
    """Every case against floor and peers."""
    ceiling = ceilings()
    result: dict[str, object] = {"ceilings": ceiling}
    for case in cases(Sizes()):
        if sparrow_ext.has_cuda_kernels(case.op):
            result[f"{case.op}: {case.name}"] = _measure(case, ceiling)
            torch.cuda.empty_cache()
    return result


def _measure(case: Case, ceiling: dict[str, float | str]) -> dict[str, object]:
    work: Work = case.build(torch.device("cuda"), COPIES)
    ours = _microseconds(work.ours)
    row: dict[str, object] = {"us": ours, "target": TARGETS.get((case.op, case.name), "")}
    row |= floors(work, ceiling, ours)
    row |= {f"{name} missing": words for name, words in work.missing.items()}
    for name, calls in work.peers.items():
        try:
            row[f"{name} us"] = _microseconds(calls)
            wrong = work.disagreement(name)
        except Exception as error:  # a peer that fails is a row, not the end of the run
            wrong = describe(error)
        if wrong is not None:
            row[f"{name} missing"] = wrong
            row.pop(f"{name} us", None)
    with contextlib.suppress(RuntimeError):  # a peer torch.compile cannot take is no result
        row["torch.compile us"] = _microseconds([torch.compile(call) for call in work.peers["eager"][:4]])
    return row


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


def _microseconds(calls: list[Callable[[], object]], rounds: int = 15, graph: bool = True) -> float:
    """Median time of one call, over a CUDA graph of all of them where they can be captured."""
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    replay: Callable[[], object] = lambda: [call() for call in calls]  # noqa: E731
    if graph:
        captured = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(captured):
                replay()
            replay = captured.replay
        except RuntimeError:  # a peer that synchronises cannot be captured: it is timed with its launches
            torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


PARTS: dict[str, Callable[[], dict]] = {
    "environment": environment, "launch": launch, "conformance": conformance, "tests": tests, "bench": bench,
    "sanitizer": sanitizer,
}  # fmt: skip


def small() -> int:
    """One call of every case at small sizes: what the sanitizer watches."""
    sizes = Sizes(hidden=256, vocab=1024, draft_vocab=512, layers=2, heads=14, kv_heads=2, head_dim=128)
    for case in cases(sizes, prefixes=(130,)):
        if sparrow_ext.has_cuda_kernels(case.op):
            case.build(torch.device("cuda"), 1).ours[0]()
    torch.cuda.synchronize()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="list what would run; needs no GPU")
    parser.add_argument("--parts", default=",".join(PARTS), help=", ".join(PARTS))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results" / "gpu.json")
    parser.add_argument("--resume", action="store_true", help="keep the parts that --out already has")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := [p for p in parts if p not in PARTS]:
        parser.error(f"unknown parts: {', '.join(unknown)}")
    if arguments.dry_run:
        for part in parts:
            print(f"{part}: {(PARTS[part].__doc__ or '').splitlines()[0]}")
        for case in cases(Sizes()):
            print(f"  bench {case.op}: {case.name}  {TARGETS.get((case.op, case.name), '')}")
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("gpu_check: torch sees no GPU here (--dry-run lists what would run)")
    if arguments.small:
        return small()
    return _run(parts, arguments.out, arguments.resume)


def _run(parts: list[str], out: pathlib.Path, resume: bool) -> int:
    results = json.loads(out.read_text()) if resume and out.exists() else {}
    for part in parts:
        if part in results:
            continue
        start = time.perf_counter()
        try:
            results[part] = PARTS[part]()
        except Exception as error:  # one failed part must not lose the others; it is reported, and the exit code is 1
            results[part] = {"error": f"{type(error).__name__}: {error}"}
        results[part]["seconds"] = round(time.perf_counter() - start, 1)
        write_text(out, json.dumps(results, indent=1) + "\n")
        print(f"{part}: {results[part].get('error', 'done')} ({results[part]['seconds']} s)", flush=True)
    for name, row in results.get("bench", {}).items():
        if isinstance(row, dict) and "us" in row:
            peers = ", ".join(f"{k[:-3]} {v:.1f}" for k, v in row.items() if k.endswith(" us"))
            missing = "".join(f"; {k[:-8]}: {v}" for k, v in row.items() if k.endswith(" missing"))
            share = f"{row['share_of_floor']:5.0%} of floor"
            if "share_of_mma_floor" in row:
                share += f", {row['share_of_mma_floor']:5.0%} of mma.sync's"
            print(f"{name:42s} {row['us']:9.2f} us  {share}  {row['target']:18s} {peers}{missing}")
    bad = [p for p in parts if "error" in results[p] or False in results[p].values()]
    print("all green" if not bad else f"red: {', '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
