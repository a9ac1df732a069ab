"""Builds and loads the simulated CUDA operators: `torch.ops.sparrow_hostsim.*`, CUDA source executed on the CPU.

A pass here says that the kernel's source is right under every schedule tried. It is never a GPU pass.
"""

import fcntl
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def cuda_include() -> pathlib.Path | None:
    """The include folder of the CUDA toolkit (headers are all we need), or None."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None:
        return None
    said = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    ).stderr
    top = re.search(r"TOP=(\S+)", said)
    folder = pathlib.Path(top.group(1)).resolve() / "include" if top else None
    return folder if folder and (folder / "cuda_bf16.h").exists() else None


MODES = ("value", "race", "asan")
LAUNCHED = pytest.StashKey[set[str]]()  # names of the kernels that a session has executed


@functools.cache
def build(target: str) -> pathlib.Path:
    """Compiles what changed (once a session) of one target of CMakeLists.txt; returns the folder it lies in.

    Raises RuntimeError with the compiler's words.
    """
    import pybind11

    include, out = cuda_include(), ROOT / "build" / "hostsim"
    if include is None:
        raise RuntimeError("the simulated build needs the CUDA toolkit's headers: install nvcc or set CUDACXX")
    tools = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    tools.pop("LD_PRELOAD", None)  # the sanitizer is for the kernels, not for the compiler
    settings = {
        "SPARROW_TORCH_DIR": pathlib.Path(torch.__file__).parent,
        "CUDA_INCLUDE_DIR": include,
        "PYTHON_INCLUDE_DIRS": f"{sysconfig.get_paths()['include']};{pybind11.get_include()}",
    }
    configure = ["cmake", "-G", "Ninja", "-S", HERE, "-B", out, *(f"-D{k}={v}" for k, v in settings.items())]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a") as lock:  # of another run, or another worker of this one
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, ["cmake", "--build", out, "--target", target, "-j", str(os.cpu_count())]):
            done = subprocess.run(command, capture_output=True, text=True, env=tools, check=False)
            if done.returncode:
                raise RuntimeError(f"the simulated build failed:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    return out


def build_library(mode: str) -> pathlib.Path:
    """The operators in one of MODES; a process may load one."""
    return build(f"sparrow_hostsim_{mode}") / f"libsparrow_hostsim_{mode}.so"


def run_program(name: str, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Builds and runs a C++ program of this folder."""
    program = build(f"{name}_{mode}") / f"{name}_{mode}"
    settings = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=settings, check=False)


def sanitizer_environment(mode: str) -> dict[str, str]:
    """What a Python that loads the library of this mode must be started with."""
    settings = {**os.environ, "SPARROW_HOSTSIM_MODE": mode}
    if mode == "asan":
        # libstdc++ too: ASan looks up what an exception is thrown by when the process starts, and Python has none.
        names = [f"-print-file-name={name}" for name in ("libasan.so", "libstdc++.so.6")]
        found = [subprocess.run(["gcc", n], capture_output=True, text=True, check=True).stdout.strip() for n in names]
        settings |= {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    return settings


def declared_kernels() -> set[str]:
    """The names of all __global__ functions in csrc/kernels."""
    names: set[str] = set()
    for path in (ROOT / "csrc" / "kernels").glob("*.cu*"):
        source = re.sub(r"//.*", "", path.read_text())
        source = re.sub(r"__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)", "", source)
        names |= set(re.findall(r"__global__\s+(?:static\s+|inline\s+)*void\s+(\w+)\s*\(", source))
    return names


class Simulator:
    """The loaded library: `ops.<name>` are the operators, `configure` chooses the schedule, `module` is module.cpp."""

    def __init__(self, path: pathlib.Path):
        spec = importlib.util.spec_from_file_location("sparrow_hostsim", path)
        assert spec and spec.loader
        self.module = importlib.util.module_from_spec(spec)  # loads the library, which registers its operators
        spec.loader.exec_module(self.module)
        self.ops = torch.ops.sparrow_hostsim

    def configure(self, seed: int = 0, workers: int = 1, shared_kib: int = 99) -> None:
        """Seed 0 runs threads and blocks in order, any other a random schedule. shared_kib: what a block may have."""
        self.module.configure(seed, workers, shared_kib * 1024)

    def shared_bytes(self, kernel: str) -> int:
        """Dynamic shared memory of the last launch of a kernel whose name begins so."""
        return next(size for name, size in self.module.launched().items() if name.strip("() ").startswith(kernel))

    def launched(self) -> set[str]:
        """Names of the kernels launched so far, without template arguments."""
        return {re.split(r"[<(]", name.strip("() "))[0].split("::")[-1] for name in self.module.launched()}


def launched_line(declared: set[str], launched: set[str] | None) -> str:
    """One line on the kernels the simulator has run; launched = None where it was not loaded."""
    if launched is None:
        return f"simulated CUDA kernels: none of {len(declared)} __global__ functions (the simulator was not loaded)"
    ran = len(declared & launched)
    return f"simulated CUDA kernels: {ran} of {len(declared)} __global__ functions launched, on the CPU"
