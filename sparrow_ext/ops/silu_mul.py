"""silu_mul: the gate of a gated MLP."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up, element by element, as F.silu(gate) * up: each product is rounded to the dtype.

    An element's bits do not depend on where it lies (those of torch's float32 silu do). No gradients.

    Args:
        gate: float32, bfloat16 or float16 [..., F], 1 to 8 dimensions. Rows that are dense and lie one step apart in
            memory (one half of a joint projection) are read in place; others are copied first.
        up: as gate, the same shape.

    Returns:
        [..., F] in the dtype of gate, contiguous.

    Raises:
        RuntimeError: wrong device, dtype or shape.

    Source: SwiGLU, arXiv 2002.05202.

    Example:
        >>> silu_mul(torch.tensor([0.0, 100.0]), torch.tensor([7.0, 2.0]))
        tensor([  0., 200.])
    """
    require_backend("silu_mul", gate)
    return torch.ops.sparrow.silu_mul(gate, up)


@fake_kernel("silu_mul")
def _fake(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def reference(gate: Tensor, up: Tensor) -> Tensor:
    """The definition, in the dtype of the inputs (float64 for tests)."""
    return gate / (1 + (-gate).exp()) * up


def eager(gate: Tensor, up: Tensor) -> Tensor:
    """What a user would write."""
    return F.silu(gate) * up
