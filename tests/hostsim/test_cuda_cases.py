"""The "cuda" cases of the kernel tests, a few of each, without a GPU: faults of the tests themselves show here."""

import os
import subprocess
import sys

import pytest

from tests.hostsim.library import HERE, ROOT, cuda_include

pytestmark = pytest.mark.skipif(cuda_include() is None, reason="no CUDA toolkit headers here")


def test_cases_for_a_gpu_pass_behind_copies(simulator):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE]
    settings = {**os.environ, "SPARROW_CUDA_CASES": "few"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings, check=False, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-2000:]}"
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-2000:]
