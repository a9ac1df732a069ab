"""argmax_rows: the greedy choice of every row of logits."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def argmax_rows(logits: Tensor) -> Tensor:
    """The lowest index among the maxima of each row.

    Args:
        logits: float32, bfloat16 or float16 [M, V] or [B, N, V], V >= 1; any row strides, last dimension dense.

    Returns:
        int64 [M] or [B, N]. A row with NaN gives the index of its first NaN, as torch.argmax does; -0 equals +0.

    Raises:
        RuntimeError: wrong dtype, shape or stride.

    Example:
        >>> argmax_rows(torch.tensor([[1.0, 3.0, 3.0], [5.0, torch.nan, 7.0]]))
        tensor([1, 1])
    """
    require_backend("argmax_rows", logits)
    return torch.ops.sparrow.argmax_rows(logits)


@fake_kernel("argmax_rows")
def _fake(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=torch.int64)


def reference(logits: Tensor) -> Tensor:
    """The definition: the first index that holds the largest value, NaN counting as the largest."""
    x = logits.double()
    x = torch.where(x.isnan(), torch.inf, x)  # +inf beside NaN: NaN wins, below
    is_top = x == x.amax(-1, keepdim=True)
    has_nan = logits.isnan().any(-1, keepdim=True)
    is_top = torch.where(has_nan, logits.isnan(), is_top)
    index = torch.arange(x.shape[-1], device=x.device).expand_as(x)
    return torch.where(is_top, index, x.shape[-1]).amin(-1)


def eager(logits: Tensor) -> Tensor:
    """What a user would write."""
    return logits.argmax(-1)
