"""Loads libsparrow.so: its schemas and kernels register with torch's dispatcher."""

import pathlib

import torch

from sparrow_ext._machine import has_gpu

LIBRARY = pathlib.Path(__file__).with_name("libsparrow.so")
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
    """Which kernels this build has, why none for CUDA where it has none, and what to do where a GPU is idle."""
    if has_cuda_kernels():
        return f"built: CPU kernels ({cpu_isa()}) and CUDA kernels, torch {torch.__version__}"
    if torch.version.cuda is None:
        why, cure = "is a build for the CPU", "install a CUDA build of torch"
    else:
        why, cure = "has CUDA, but the build found no nvcc (or had SPARROW_CUDA=OFF)", "install the CUDA toolkit (nvcc)"
    report = f"built: CPU kernels ({cpu_isa()}), no CUDA kernels: torch {torch.__version__} {why}"
    if has_gpu():
        report += f"\nWARNING: THIS MACHINE HAS A GPU AND SPARROW CANNOT USE IT. Mend it: {cure}, then {BUILD_COMMAND}"
    return report


def cpu_isa() -> str:
    """The instruction set the CPU kernels use: generic, avx2 or avx512 (with bf16)."""
    return torch.ops.sparrow.cpu_isa()


def set_cpu_isa(name: str) -> None:
    """Chooses the CPU kernels' instruction set for this process: generic, avx2 or avx512.

    Raises RuntimeError where the name is unknown or this CPU lacks the instructions.
    """
    torch.ops.sparrow.set_cpu_isa(name)
