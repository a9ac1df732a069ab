"""A few cases of every kernel test once more, in a process of their own, with kernels built to report more."""

import subprocess
import sys

import pytest

from tests.hostsim.library import HERE, ROOT, build_library, cuda_include, sanitizer_environment

TIME_LIMIT = 300  # seconds; a crash on a fiber's stack can hang instead

pytestmark = pytest.mark.skipif(cuda_include() is None, reason="no CUDA toolkit headers here")


@pytest.mark.parametrize("mode", ["race", "asan"])
def test_kernels_are_clean(mode):
    build_library(mode)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", HERE]
    settings = sanitizer_environment(mode)
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=settings, check=False, timeout=TIME_LIMIT
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-6000:]}"
    assert "test_all_kernels" not in done.stdout and " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-2000:]
