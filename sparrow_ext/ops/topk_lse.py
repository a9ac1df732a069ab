"""topk_lse: top-k log-probabilities and log-sum-exp of rows of logits."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend

MAX_K = 32


@operator
def topk_lse(
    logits: Tensor, k: int, id_map: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k log-probabilities and log-sum-exp of rows of logits, in one pass and without writing probabilities.

    Args:
        logits: float32, bfloat16 or float16, [M, V] or [B, N, V]; the last dimension dense, other strides free.
            Computed in float32.
        k: 1 <= k <= min(32, V).
        id_map: int64 [V], contiguous: the token id of each column (a trimmed vocabulary); None = the column itself.
        bias: float32 [B, V], or [1, V] for logits of two dimensions, the last dimension dense: added to the logits in
            float32 before all else (`gumbel_noise`; -inf takes a token out). None = nothing.

    Returns:
        logp: float32 [..., k], x - lse, in the order (logit descending, then column ascending).
        ids: int64 [..., k], the columns of those entries, through id_map where given.
        lse: float32 [...], natural log of the sum of exponentials.

        NaN counts as -inf. -inf entries have logp -inf; among them the lowest columns come first, so a row of -inf
        gives lse -inf, logp -inf and the first k columns. A row with +inf gives lse +inf, logp 0 for its +inf entries
        and -inf for all others.

    Raises:
        RuntimeError: wrong dtype, shape, stride or k.

    The one-pass maximum and sum: "Online normalizer calculation for softmax" (arXiv 1805.02867).

    Example:
        >>> logp, ids, lse = topk_lse(torch.tensor([[0.0, 2.0, -9.0]]), 2)
        >>> ids, logp.exp(), lse
        (tensor([[1, 0]]), tensor([[0.8808, 0.1192]]), tensor([2.1269]))
    """
    require_backend("topk_lse", logits)
    return torch.ops.sparrow.topk_lse(logits, k, id_map, bias)


@fake_kernel("topk_lse")
def _fake(
    logits: Tensor, k: int, id_map: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    lead = logits.shape[:-1]
    return (
        logits.new_empty((*lead, k), dtype=torch.float32),
        logits.new_empty((*lead, k), dtype=torch.int64),
        logits.new_empty(lead, dtype=torch.float32),
    )


def reference(
    logits: Tensor, k: int, id_map: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in the dtype of the logits (float64 for tests)."""
    logits = biased(logits, bias)
    x = logits.masked_fill(logits.isnan(), float("-inf"))
    order = torch.sort(x, dim=-1, descending=True, stable=True)
    value, ids = order.values[..., :k], order.indices[..., :k]
    lse = torch.logsumexp(x, dim=-1)
    logp = value - lse.unsqueeze(-1)
    logp = torch.where(value == float("-inf"), value, torch.where(value == float("inf"), torch.zeros_like(value), logp))
    return logp, ids if id_map is None else id_map[ids], lse


def biased(logits: Tensor, bias: Tensor | None) -> Tensor:
    """logits [M, V] or [B, N, V], plus bias [1, V] or [B, V]."""
    return logits if bias is None else logits + (bias[:, None] if logits.dim() == 3 else bias)


def eager(
    logits: Tensor, k: int, id_map: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a user would write: torch.logsumexp and torch.topk (ties in any order, NaN not handled)."""
    x = biased(logits.float(), bias)
    lse = torch.logsumexp(x, dim=-1)
    top = torch.topk(x, k, dim=-1)
    return top.values - lse.unsqueeze(-1), top.indices if id_map is None else id_map[top.indices], lse
