"""The error word: how CUDA operators report values they had to skip, without a host synchronisation of their own."""

import torch
from torch import Tensor

ERROR_BITS = {
    1: "a parent outside [-1, i): its node was taken for one that sees itself only and is never accepted",
    2: "a count or length out of range: it was clamped",
    4: "an index out of range: it was skipped",
}  # ErrorBit in csrc/ops/common.h


def error_word(device: torch.device | str) -> Tensor:
    """A clear error word, int32 [1]. Operators that take `error` set bits of it and never clear one.

    The CPU operators raise instead and leave it alone.
    """
    return torch.zeros(1, dtype=torch.int32, device=device)


def raise_for_error(word: int) -> None:
    """Raises RuntimeError naming every bit that is set in an error word's value."""
    if word:
        found = [text for bit, text in ERROR_BITS.items() if word & bit] or [f"unknown bits {word:#x}"]
        raise RuntimeError(f"sparrow: a CUDA operator got bad values: {'; '.join(found)}")
