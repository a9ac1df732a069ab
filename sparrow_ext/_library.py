"""Loads libsparrow.so: its schemas and kernels register with torch's dispatcher."""

import os
import pathlib

import torch

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


def cpu_isa() -> str:
    """The instruction set the CPU kernels use: generic, avx2 or avx512 (with bf16)."""
    return torch.ops.sparrow.cpu_isa()


def set_cpu_isa(name: str) -> None:
    """Chooses the CPU kernels' instruction set for this process: generic, avx2 or avx512.

    Raises RuntimeError where the name is unknown or this CPU lacks the instructions.
    """
    torch.ops.sparrow.set_cpu_isa(name)
