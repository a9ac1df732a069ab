"""GPU checks: memcheck and racecheck over a small call of every timed case, our kernels only."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bench.gpu_measure import ROOT
from bench.gpu_worker import Case, Place, Skip

ERRORS = 9  # the tool's exit code where it found something


def cases(place: Place) -> Iterator[Case]:
    for kind in ("memcheck", "racecheck"):
        yield Case(kind, lambda kind=kind: sanitized(kind, place))


def sanitized(kind: str, place: Place) -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if tool is None and place.gpu:
        raise Skip("no compute-sanitizer")
    watched = [sys.executable, "-m", "bench.gpu_worker", "small"]
    options = ["--tool", kind, "--kernel-name", "kernel_substring=sparrow", "--error-exitcode", str(ERRORS)]
    command = [tool, *options, "--print-limit", "20", *watched] if tool and place.gpu else watched
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    tail = (done.stdout + done.stderr)[-1500:]
    assert done.returncode != ERRORS, f"{kind} found errors: {tail}"
    assert done.returncode == 0, f"exit code {done.returncode}: {tail}"
    return {"tool": tool or "none: a rehearsal"}
