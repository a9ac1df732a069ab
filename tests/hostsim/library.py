"""Builds and loads the simulated CUDA operators: `torch.ops.sparrow_hostsim.*`, CUDA source executed on the CPU.

A pass here says that the kernel's source is right under every schedule tried. It is never a GPU pass.
"""

import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import sys

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


def build(mode: str = "value") -> pathlib.Path:
    """Compiles what changed; returns the library. Raises RuntimeError with the compiler's words."""
    include, out = cuda_include(), ROOT / "build" / "hostsim" / mode
    if include is None:
        raise RuntimeError("the simulated build needs the CUDA toolkit's headers: install nvcc or set CUDACXX")
    tools = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    settings = {
        "SPARROW_TORCH_DIR": pathlib.Path(torch.__file__).parent,
        "CUDA_INCLUDE_DIR": include,
        "HOSTSIM_MODE": mode,
    }
    configure = ["cmake", "-G", "Ninja", "-S", HERE, "-B", out, *(f"-D{k}={v}" for k, v in settings.items())]
    for command in (configure, ["cmake", "--build", out, "-j", str(os.cpu_count())]):
        done = subprocess.run(command, capture_output=True, text=True, env=tools, check=False)
        if done.returncode:
            raise RuntimeError(f"the simulated build failed:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    return out / "libsparrow_hostsim.so"


class Simulator:
    """The loaded library: `ops.<name>` are the operators, `configure` chooses the schedule."""

    def __init__(self, path: pathlib.Path):
        torch.ops.load_library(path)
        self.ops = torch.ops.sparrow_hostsim
        self._library = ctypes.CDLL(str(path))
        self._library.hostsim_configure.argtypes = [ctypes.c_uint64, ctypes.c_int]
        self._library.hostsim_launched.restype = ctypes.c_char_p

    def configure(self, seed: int = 0, workers: int = 1) -> None:
        """Seed 0 runs threads and blocks in order, any other a random schedule."""
        self._library.hostsim_configure(seed, workers)

    def launched(self) -> set[str]:
        """Names of the kernels launched so far, without template arguments."""
        return {
            re.split(r"[<(]", name.strip("() "))[0]
            for name in self._library.hostsim_launched().decode().split("\n")
            if name
        }
