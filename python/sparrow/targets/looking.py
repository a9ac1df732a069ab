"""Where a target's rows look: the attention each layer spends on visual tokens."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from sparrow.targets.adapter import Target
from sparrow.targets.attention import attention_in

NAME = "sparrow_looking"
ROWS = 64  # of attention weights at a time: heads x 64 x N floats


@contextlib.contextmanager
def looking(target: Target, visual: Tensor, first: int) -> Iterator[list[Tensor]]:
    """Inside, each decoder layer of a whole-sequence pass without a cache adds to the list it yields: float32 [N -
    first], of each row from place `first` on the share of its attention that falls on visual rows, mean over heads.

    Args:
        target: its attention is what it was before, afterwards.
        visual: bool [N], the visual tokens of the one sequence.
    """
    found: list[Tensor] = []

    def attention(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling=None, **_):
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        found.append(_shares(query, key, visual, first, scaling))
        return out.transpose(1, 2), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    with attention_in(target.model, NAME):
        yield found


def _shares(query: Tensor, key: Tensor, visual: Tensor, first: int, scale: float | None) -> Tensor:
    """query [1, H, N, D], key [1, K, N, D] -> float32 [N - first]."""
    n = query.shape[2]
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)[0].float()
    scale = query.shape[3] ** -0.5 if scale is None else scale
    places, shares = torch.arange(n, device=query.device), []
    for start in range(first, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        scores = query[0, :, rows].float() @ keys.transpose(1, 2) * scale
        weights = scores.masked_fill(places > places[rows, None], -torch.inf).softmax(-1)
        shares.append(weights[..., visual].sum(-1).mean(0))
    return torch.cat(shares)
