"""Loads a CUDA-enabled libsparrow.so under the installed torch, CPU builds included: every operator has a CUDA kernel.

python tools/load_check.py LIBRARY
"""

import pathlib
import sys

import torch

SOURCES = pathlib.Path(__file__).parents[1] / "csrc"


def main() -> int:
    """Prints the operators without a CUDA kernel; exit code 1 where there are any."""
    torch.ops.load_library(sys.argv[1])
    operators = sorted(path.stem for path in (SOURCES / "bindings").glob("*.cpp") if path.stem != "library")
    missing = [op for op in operators if not torch._C._dispatch_has_kernel_for_dispatch_key(f"sparrow::{op}", "CUDA")]
    print(f"load_check: loads under torch {torch.__version__}, {len(operators)} operators; no CUDA kernel: {missing}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
