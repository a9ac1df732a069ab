"""gumbel_noise: the noise with which sample_rows draws, for a drafter that draws with it."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend
from sparrow_ext.ops.sample_rows import gumbel


@operator
def gumbel_noise(seed: Tensor, position: Tensor, vocab: int, id_map: Tensor | None = None) -> Tensor:
    """The noise g of sample_rows' draws: there the token of a row is argmax(logits / temperature + g).

    A drafter that adds the same noise to its own logits proposes what the target will draw wherever the two agree well
    enough, and the target's draw does not depend on what is proposed.

    Args:
        seed: int64 [B], one per sequence, as sample_rows takes it.
        position: int64 [B, N], the absolute positions of the tokens to be drawn.
        vocab: V, the columns.
        id_map: int64 [V], contiguous, >= 0: the token id of each column (a trimmed vocabulary); None = the column.

    Returns:
        float32 [B, N, V], contiguous: within a few ulp of sample_rows' noise, which is in float64.

    Raises:
        RuntimeError: wrong dtype, shape, stride, device or value.

    Source: Daliri, Musco, Suresh, "Coupling without communication and drafter-invariant speculative decoding" (arXiv
        2408.07978).

    Example:
        >>> seed, position = torch.tensor([7]), torch.tensor([[12]])
        >>> noise = gumbel_noise(seed, position, 3)
        >>> logits = torch.tensor([[[0.0, 1.0, 2.0]]])
        >>> (logits + noise).argmax(-1) == torch.ops.sparrow.sample_rows(logits, torch.ones(1), seed, position)
        tensor([[True]])
    """
    require_backend("gumbel_noise", position)
    return torch.ops.sparrow.gumbel_noise(seed, position, vocab, id_map)


@fake_kernel("gumbel_noise")
def _fake(seed: Tensor, position: Tensor, vocab: int, id_map: Tensor | None = None) -> Tensor:
    return position.new_empty((*position.shape, vocab), dtype=torch.float32)


def reference(seed: Tensor, position: Tensor, vocab: int, id_map: Tensor | None = None) -> Tensor:
    """The definition, in float64."""
    if id_map is None:
        return gumbel(seed, position, vocab)
    return gumbel(seed, position, int(id_map.max()) + 1)[..., id_map]


def eager(seed: Tensor, position: Tensor, vocab: int, id_map: Tensor | None = None) -> Tensor:
    """What a user would write: torch's own exponential noise, which no seed, position and token name."""
    return -torch.empty(*position.shape, vocab, device=position.device).exponential_().log()
