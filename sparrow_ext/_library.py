"""Loads libsparrow.so: its schemas and kernels register with torch's dispatcher."""

import os
import pathlib

import torch

from sparrow_ext._machine import has_gpu

# SPARROW_LIBRARY: another build of it, such as the sanitized one of `make fuzz`.
LIBRARY = pathlib.Path(os.environ.get("SPARROW_LIBRARY") or pathlib.Path(__file__).with_name("libsparrow.so"))
BUILD_COMMAND = "pip install -e . (in sparrow's source tree)"


def _load() -> None:
    if not LIBRARY.exists():
        raise ImportError(f"sparrow's operators are not built: {LIBRARY} is missing. Build them: {BUILD_COMMAND}")
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(f"sparrow's operators cannot be loaded: {error}. Rebuild them: {BUILD_COMMAND}") from error


_load()


def has_cuda_kernels(op: str = "tree_mask") -> bool:
    """True where this build registered a CUDA kernel for `op`."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"sparrow::{op}", "CUDA")


def require_backend(op: str, tensor: torch.Tensor) -> None:
    """Raises RuntimeError where `tensor` lives on a CUDA device and `op` was built without a CUDA kernel."""
    if tensor.is_cuda and not has_cuda_kernels(op):
        raise RuntimeError(f"sparrow.{op}: built without CUDA kernels: SPARROW_CUDA=ON {BUILD_COMMAND}")


def build_report() -> str:
    """Which kernels this build has, why none for CUDA where it has none, and gpu_warning."""
    kernels = f"built: CPU kernels ({cpu_isa()})"
    if has_cuda_kernels():
        return f"{kernels} and CUDA kernels, torch {torch.__version__}"
    none = "has CUDA, but the build found no nvcc (or had SPARROW_CUDA=OFF)" if torch.version.cuda else "is a CPU build"
    return "\n".join(filter(None, [f"{kernels}, no CUDA kernels: torch {torch.__version__} {none}", gpu_warning()]))


def gpu_warning() -> str | None:
    """What to do where the machine has a GPU and this build no kernels for it."""
    if has_cuda_kernels() or not has_gpu():
        return None
    cure = "install the CUDA toolkit (nvcc)" if torch.version.cuda else "install a CUDA build of torch"
    return f"WARNING: THIS MACHINE HAS A GPU AND SPARROW CANNOT USE IT. Mend it: {cure}, then {BUILD_COMMAND}"


def cpu_isa() -> str:
    """The instruction set the CPU kernels use: generic, avx2, avx512, or avx512_bf16 where that is the faster one."""
    return torch.ops.sparrow.cpu_isa()


def set_cpu_isa(name: str) -> None:
    """Chooses the CPU kernels' instruction set for this process: generic, avx2, avx512 or avx512_bf16.

    Raises RuntimeError where the name is unknown or this CPU lacks the instructions.
    """
    torch.ops.sparrow.set_cpu_isa(name)
