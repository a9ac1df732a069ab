"""skinny_linear, skinny_linear_group: linear layers for few rows, whose rows do not depend on each other."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparrow_ext._arguments import check_dims, fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def skinny_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """out[..., :] = weight @ x[..., :] + bias, as F.linear, made for few rows.

    float32 accumulation in one order, whatever the number of rows M (the product of x's leading dimensions): a row has
    the same bits alone and among others, on one machine and instruction set. F.linear's rows do not. One rounding to
    the dtype. More than 64 rows are taken in even parts of up to 64, each of which reads the weights once. No
    gradients. With bfloat16 on CPUs that multiply it natively (avx512_bf16) denormal inputs count as zero.

    Args:
        x: [..., K], 1 to 8 dimensions, float32, bfloat16 or float16. Rows that are dense and lie one step apart in
            memory are read in place; any other x is copied first.
        weight: [N, K], the dtype of x; rows dense.
        bias: [N] or None.
        out: [..., N] of the same dtype, rows dense, one step apart, apart from x and weight in memory; mutated and
            returned. None allocates.
        workspace: uint8 [bytes], bytes >= skinny_linear_workspace_size(M, K, N); mutated; only with `out`, where None
            allocates it.

    Returns:
        [..., N] in the dtype of x: `out` where given.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride.
        ValueError: `workspace` without `out`.

    Example:
        >>> skinny_linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([0.0, 1.0]))
        tensor([[3., 5.]])
    """
    require_backend("skinny_linear", x)
    if out is None:
        if workspace is not None:
            raise ValueError("sparrow.skinny_linear: workspace is used only together with out")
        return torch.ops.sparrow.skinny_linear(x, weight, bias)
    if workspace is None:
        check_dims("skinny_linear", "weight", weight, 2)
        size = skinny_linear_workspace_size(x.shape[:-1].numel(), weight.shape[1], weight.shape[0])
        workspace = torch.empty(size, dtype=torch.uint8, device=out.device)
    torch.ops.sparrow.skinny_linear_out(x, weight, bias, out, workspace)
    return out


@operator
def skinny_linear_group(x: Tensor, weights: list[Tensor], biases: list[Tensor | None] | None = None) -> list[Tensor]:
    """[skinny_linear(x, weight, bias), ...], with its bits, in one call: for q, k and v, or for gate and up.

    x is packed once, and on CUDA all weights share the launches that skinny_linear makes for each.

    Args:
        x: [..., K], as for `skinny_linear`.
        weights: one to three of [N, K], each with an N of its own; the dtype of x, rows dense.
        biases: for each weight [N] or None. None: no biases.

    Returns:
        For each weight [..., N] in the dtype of x, contiguous.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride; other than one to three weights, or than one bias for each.

    Example:
        >>> skinny_linear_group(torch.tensor([[1.0, 2.0]]), [torch.tensor([[1.0, 1.0]]), torch.eye(2)])
        [tensor([[3.]]), tensor([[1., 2.]])]
    """
    require_backend("skinny_linear_group", x)
    biases = [None] * len(weights) if biases is None else biases
    return torch.ops.sparrow.skinny_linear_group(x, weights, biases)


@operator
def skinny_linear_workspace_size(M: int, K: int, N: int) -> int:
    """Bytes of scratch that skinny_linear's `out` form needs for up to M rows; it depends on these numbers only."""
    return torch.ops.sparrow.skinny_linear_workspace_size(M, K, N)


@fake_kernel("skinny_linear")
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@fake_kernel("skinny_linear_group")
def _fake_group(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    return [_fake(x, weight) for weight in weights]


@fake_kernel("skinny_linear_out")
def _fake_out(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, workspace: Tensor) -> None:
    return None


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition, row by row, in the dtype of the inputs (float64 for tests)."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_zeros(x.shape[:-1].numel(), x.shape[-1])
    out = x.new_zeros(len(rows), weight.shape[0])
    for m, row in enumerate(rows):
        out[m] = (weight * row).sum(dim=-1)
        if bias is not None:
            out[m] += bias
    return out.view(*x.shape[:-1], weight.shape[0])


def eager(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a user would write."""
    return F.linear(x, weight, bias)


def eager_group(x: Tensor, weights: list[Tensor], biases: list[Tensor | None] | None = None) -> list[Tensor]:
    """What a user would write."""
    return [F.linear(x, *layer) for layer in zip(weights, biases or [None] * len(weights), strict=True)]
