"""hsr_project: the drafter's input projection of token embeddings and the target's hidden states."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def hsr_project(
    token_ids: Tensor,
    row_index: Tensor,
    embed: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    num_rows: Tensor | None = None,
    error: Tensor | None = None,
) -> Tensor:
    """out[m] = weight @ concat(embed[token_ids[m]], hidden[row_index[m]]) + bias, without the gathered copies.

    float32 accumulation; one rounding to the dtype. Up to 64 rows a row has the same bits whatever their number. More
    rows are taken up to 64 at a time or, where that is faster (bfloat16 with AVX-512, and CPUs without AVX2), gathered
    in chunks of 512 for the library's GEMM.
    With bfloat16 on CPUs that multiply it natively (avx512_bf16) denormal inputs count as zero.

    Args:
        token_ids: int64 [M], contiguous, each in [0, V).
        row_index: int32 [M], contiguous, each in [-1, R); -1 stands for a hidden row of zeros.
        embed: [V, E], float32, bfloat16 or float16; rows dense.
        hidden: [R, H], the dtype of embed; rows dense.
        weight: [O, E + H], the dtype of embed; rows dense; the first E columns multiply the embedding.
        bias: [O] or None.
        num_rows: int32 [1], in [0, M], or None for M. Rows from num_rows on are not computed and their indices not
            looked at; they are zero.
        error: int32 [1], the error word (see `sparrow_ext.error_word`), or None. Mutated by the CUDA kernel only.

    Returns:
        [M, O] in the dtype of weight.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride; on the CPU also an index outside its table or num_rows
            outside [0, M]. The CUDA kernel takes zeros, clamps, and sets bits 4 and 2 of `error`.

    Source: the input fusion of EAGLE's drafter (arXiv 2401.15077), here with the rows gathered inside the product.

    Example:
        >>> embed, hidden = torch.eye(3), 10 * torch.eye(3)
        >>> weight = torch.cat([torch.eye(3), torch.eye(3)], dim=1)
        >>> hsr_project(torch.tensor([2, 0]), torch.tensor([0, -1], dtype=torch.int32), embed, hidden, weight)
        tensor([[10.,  0.,  1.],
                [ 1.,  0.,  0.]])
    """
    require_backend("hsr_project", token_ids)
    return torch.ops.sparrow.hsr_project(token_ids, row_index, embed, hidden, weight, bias, num_rows, error)


@fake_kernel("hsr_project")
def _fake(
    token_ids: Tensor,
    row_index: Tensor,
    embed: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    num_rows: Tensor | None = None,
    error: Tensor | None = None,
) -> Tensor:
    return weight.new_empty((token_ids.shape[0], weight.shape[0]))


def reference(
    token_ids: Tensor,
    row_index: Tensor,
    embed: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    num_rows: Tensor | None = None,
) -> Tensor:
    """The definition, row by row, in the dtype of the inputs (float64 for tests)."""
    out = weight.new_zeros(token_ids.shape[0], weight.shape[0])
    for m in range(token_ids.shape[0] if num_rows is None else int(num_rows)):
        state = hidden[row_index[m]] if row_index[m] >= 0 else hidden.new_zeros(hidden.shape[1])
        out[m] = weight @ torch.cat([embed[token_ids[m]], state])
        if bias is not None:
            out[m] += bias
    return out


def eager(
    token_ids: Tensor,
    row_index: Tensor,
    embed: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    num_rows: Tensor | None = None,
) -> Tensor:
    """What a user would write for plain rows: embedding, index, concatenation, linear (no -1, no num_rows)."""
    return F.linear(torch.cat([F.embedding(token_ids, embed), hidden[row_index]], dim=-1), weight, bias)


def fold_embedding(embed: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The table T = embed @ weight[:, :E].T + bias, [V, O], for hsr_project_folded.

    Plain PyTorch, done once at load. It halves the weights read per call and costs V x O elements of memory: 1.09 GB
    at V = 152064, O = 3584 in bfloat16. The table is rounded to the dtype, so the sum differs from hsr_project's in
    the last bits.
    """
    return F.linear(embed, weight[:, : embed.shape[1]], bias)


@operator
def hsr_project_folded(token_ids: Tensor, row_index: Tensor, table: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """hsr_project with the embedding's half folded away: out[m] = table[token_ids[m]] + weight @ hidden[row_index[m]].

    Args:
        token_ids: int64 [M], contiguous, each in [0, V).
        row_index: int32 [M], contiguous, each in [-1, R); -1 stands for a hidden row of zeros.
        table: [V, O] of fold_embedding.
        hidden: [R, H], the dtype of table; rows dense.
        weight: [O, H], hsr_project's weight[:, E:].

    Returns:
        [M, O] in the dtype of table. Both summands are rounded to it.

    Raises:
        RuntimeError: as hsr_project; IndexError where torch finds a token id outside the table on the CPU.
    """
    require_backend("hsr_project", token_ids)
    nothing = table[:, :0]
    return torch.ops.sparrow.hsr_project(token_ids, row_index, nothing, hidden, weight).add_(
        F.embedding(token_ids, table)
    )
