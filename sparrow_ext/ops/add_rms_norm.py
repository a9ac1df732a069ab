"""add_rms_norm: a residual sum and its root mean square norm."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def add_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """total = x + residual; normed = weight * (total / sqrt(mean(total^2) + eps)).

    Rounded to the dtype as transformers' modules do: the sum, then the normalised row, then its product. The mean is
    taken in float32, in an order that the width alone decides: a row has the same bits alone and among others. No
    gradients.

    Args:
        x: float32, bfloat16 or float16 [..., E], 1 to 8 dimensions. Rows that are dense and lie one step apart in
            memory are read in place; any other x is copied first.
        weight: [E], the dtype of x.
        eps: at least 0.
        residual: as x, the same shape; None = nothing is added.

    Returns:
        normed and total, both [..., E] in the dtype of x; without a residual total is x itself.

    Raises:
        RuntimeError: wrong device, dtype, shape or value.

    Source: root mean square layer normalisation, arXiv 1910.07467.

    Example:
        >>> normed, total = add_rms_norm(torch.tensor([[1.0, 2.0]]), torch.ones(2), 0.0, torch.tensor([[2.0, 2.0]]))
        >>> total
        tensor([[3., 4.]])
        >>> normed.pow(2).mean()
        tensor(1.)
    """
    require_backend("add_rms_norm", x)
    total, normed = torch.ops.sparrow.add_rms_norm(x, residual, weight, eps)
    return normed, x if residual is None else total


@fake_kernel("add_rms_norm")
def _fake(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x.new_empty(0 if residual is None else x.shape)
    return total, x.new_empty(x.shape)


def reference(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, in the dtype of the inputs (float64 for tests)."""
    total = x if residual is None else x + residual
    return weight * (total / (total.pow(2).mean(-1, keepdim=True) + eps).sqrt()), total


def eager(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What transformers' modules do."""
    total = x if residual is None else x + residual
    wide = total.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype), total
