"""lm_head_topk: the language-model head and the top-k of its log-probabilities in one operator."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend
from sparrow_ext.ops import topk_lse as _topk


@operator
def lm_head_topk(
    h: Tensor, weight: Tensor, k: int, id_map: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """topk_lse(h @ weight.T + bias): the head's weights are streamed once and the logits are never written to memory.

    Up to 64 rows (the product of h's leading dimensions) the logits are float32 sums, never rounded to the dtype, and a
    row's result has the same bits whatever the number of rows. More rows are taken 64 at a time or, where that is
    faster (bfloat16 with AVX-512, and CPUs without AVX2), 128 at a time through the library's GEMM: the logits then
    have the dtype of h, as F.linear returns them, and are in memory for those rows.

    Args:
        h: float32, bfloat16 or float16, [M, E] or [B, N, E]; the last dimension dense.
        weight: [V, E], the dtype of h; the last dimension dense.
        k: 1 <= k <= min(32, V).
        id_map: int64 [V], contiguous: the token id of each row of weight (a trimmed vocabulary); None = the row itself.
        bias: float32 [B, V], or [1, V] for h of two dimensions, the last dimension dense: added to the logits in
            float32 (`gumbel_noise`; -inf takes a token out). None = nothing.

    Returns:
        logp: float32 [..., k], sorted (logit descending, then row of weight ascending).
        ids: int64 [..., k].
        lse: float32 [...], natural log.

        NaN and infinities as in topk_lse.

    Raises:
        RuntimeError: wrong dtype, shape, stride or k.

    Example:
        >>> logp, ids, lse = lm_head_topk(torch.ones(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [-9.0, 0.0]]), 2)
        >>> ids, logp.exp()
        (tensor([[1, 0]]), tensor([[0.8808, 0.1192]]))
    """
    require_backend("lm_head_topk", h)
    return torch.ops.sparrow.lm_head_topk(h, weight, k, id_map, bias)


@fake_kernel("lm_head_topk")
def _fake(
    h: Tensor, weight: Tensor, k: int, id_map: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    lead = h.shape[:-1]
    return (
        h.new_empty((*lead, k), dtype=torch.float32),
        h.new_empty((*lead, k), dtype=torch.int64),
        h.new_empty(lead, dtype=torch.float32),
    )


def reference(
    h: Tensor, weight: Tensor, k: int, id_map: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in the dtype of the inputs (float64 for tests)."""
    return _topk.reference(h @ weight.T, k, id_map, bias)


def eager(
    h: Tensor, weight: Tensor, k: int, id_map: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a user would write: F.linear, then torch.logsumexp and torch.topk."""
    return _topk.eager(F.linear(h, weight), k, id_map, bias)
