"""Everything that needs a GPU, in one command: checks, then times; one JSON, a summary last.

    python -m bench.gpu_check [--dry-run] [--parts environment,...] [--out bench/results/gpu.json] [--resume]

Parts go in order of value, each in processes of its own under its own limits; every case's result is on disk before the
next one begins (bench/gpu_runner.py). Needs no network; of programs nvcc (conformance) and compute-sanitizer, without
which those parts are not green. Green is: every case of every part asked for ran, and passed.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass

from bench.gpu_runner import Results, problems, run_part

ROOT = pathlib.Path(__file__).parents[1]
BUDGET = 470  # seconds, for all parts


@dataclass(frozen=True)
class Part:
    """limit: seconds for all of it; case: seconds without a result, after which a process is killed."""

    says: str
    limit: float
    case: float


PARTS = {
    "environment": Part("versions, kernels in this build, a launch on a stream and in a graph", 60, 45),
    "conformance": Part("every ptx wrapper beside its meaning on the CPU", 60, 50),
    "operators": Part("the kernels' tests on CUDA", 130, 40),
    "shapes": Part("matrix-unit kernels at 7B sizes beside float64", 70, 30),
    "decode": Part("lossless decoding of the shipped pair and of every family", 110, 50),
    "sanitizer": Part("memcheck and racecheck over a small call of every case", 120, 60),
    "bench": Part("every operator at 7B shapes against its floor", 110, 30),
    "round": Part("rounds at 7B shapes by bench.round, at each visual length", 120, 60),
    "early": Part("decoding and rounds with programmatic launches (SPARROW_PDL=1)", 90, 60),
    "peer_times": Part("other libraries at the same work", 80, 30),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="list what would run; needs no GPU")
    parser.add_argument("--parts", default=",".join(PARTS), help=", ".join(PARTS))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results" / "gpu.json")
    parser.add_argument("--resume", action="store_true", help="keep what is green in --out, of the same commit")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts")
    parser.add_argument("--rehearse", action="store_true", help="small and on the CPU: the whole path, no GPU result")
    chosen = parser.parse_args()
    parts = [name for name in chosen.parts.split(",") if name]
    if unknown := [p for p in parts if p not in PARTS]:
        parser.error(f"unknown parts: {', '.join(unknown)}")
    if chosen.dry_run:
        return dry_run(parts)
    results = Results(chosen.out, head(chosen.rehearse))
    if chosen.resume and chosen.out.exists():
        take_up(results)
    return run(results, parts, chosen.budget, chosen.rehearse)


def dry_run(parts: list[str]) -> int:
    """Lists the parts, and the timed cases where torch and the operators are there."""
    for name in parts:
        print(f"{name}: {PARTS[name].says} (at most {PARTS[name].limit:.0f} s)")
    from bench.gpu_bench import TARGETS, all_timed
    from bench.gpu_worker import Place

    for case in all_timed(Place("cuda", False)):
        print(f"  bench {case.op}: {case.name}  {TARGETS.get((case.op, case.name), '')}".rstrip())
    return 0


def head(rehearsal: bool) -> dict[str, object]:
    """What holds for all parts."""
    git = lambda *words: subprocess.run(  # noqa: E731
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    ).stdout.strip()
    names = ("torch", "transformers", "triton", "xformers", "flashinfer-python")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "rehearsal": rehearsal, "command": " ".join(["python -m bench.gpu_check", *sys.argv[1:]]),
        "commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain")), "versions": versions,
    }  # fmt: skip


def take_up(results: Results) -> None:
    """What an earlier run of the same commit has left. Raises SystemExit for another commit's."""
    before = json.loads(results.file.read_text())
    for key in ("commit", "rehearsal"):
        if before.get(key) != results.head[key]:
            raise SystemExit(f"gpu_check: {results.file} is of {key} {before.get(key)}, this is {results.head[key]}")
    results.parts = before["parts"]


def run(results: Results, parts: list[str], budget: float, rehearsal: bool) -> int:
    """All parts in order; the exit code is 0 where all is green."""
    start = time.monotonic()
    settings = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": _path()}
    if rehearsal:
        settings |= {"SPARROW_REHEARSE": "1", "SPARROW_CUDA_CASES": "few"}
    for name in parts:
        part = PARTS[name]
        if results.parts.get(name, {}).get("complete") and len(results.green(name)) == len(results.part(name)["cases"]):
            continue
        print(f"{name}: {part.says}", flush=True)
        slower = 20 if rehearsal else 1
        deadline = min(start + budget, time.monotonic() + part.limit * slower)
        command = [sys.executable, "-m", "bench.gpu_worker", name]
        run_part(results, name, command, case_limit=part.case * slower, deadline=deadline, settings=settings)
    return verdict(results, parts, rehearsal, time.monotonic() - start)


def _path() -> str:
    """Where the workers find the project, installed or not."""
    return os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


def verdict(results: Results, parts: list[str], rehearsal: bool, seconds: float) -> int:
    """Says what is not green, and writes it down."""
    found = problems(results, parts)
    versions = results.parts.get("environment", {}).get("cases", {}).get("versions", {})
    if "provenance" in versions:
        results.head["provenance"] = {**versions["provenance"], "command": results.head["command"]}
    results.head |= {"seconds": round(seconds, 1), "green": not found, "problems": found}
    results.save()
    for line in found:
        print(f"! {line}"[:300])
    what = "a rehearsal on the CPU: no GPU was used" if rehearsal else f"{seconds:.0f} s"
    print(f"{'all green' if not found else f'not green: {len(found)} problems'} ({what}); {results.file}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
