"""Passes through unmodified transformers models with their decoder attention replaced: by `tree_attention`, or by one
that adds up who is looked at.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

import sparrow_ext

NAME = "sparrow_tree"
RANKING = "sparrow_ranking"


def _tree_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float | None = None, **kwargs
) -> tuple[Tensor, None]:
    """transformers' attention signature over `tree_attention`; used by verify passes and by nothing else.

    query [B, H, N, D]; key and value are the cache's whole buffer [B, K, capacity, D]; attention_mask carries the
    tree's ancestor words, int64 [B, 1, N, W] (a 4-D mask travels through every model untouched).
    """
    lengths: list[Tensor] | None = kwargs.get("sparrow_lengths")
    if lengths is None:
        raise RuntimeError("the model is verifying a draft tree: only sparrow's decode loop may call it now")
    out, _ = sparrow_ext.tree_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        lengths[module.layer_idx],
        anc=attention_mask.squeeze(1),
        scale=scaling,
        max_prefix_len=key.shape[2] - query.shape[2],
        error=kwargs.get("sparrow_error"),
    )
    return out, None


def _ranking_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **kwargs
) -> tuple[Tensor, None]:
    """Softmax attention in plain PyTorch for rows that are run once more; adds up how much each row is attended to.

    query [B, H, N, D], the rows from place `sparrow_first` on; key and value [B, K, capacity, D], whose rows hold them
    already; sparrow_sums float32 [B, P] gets each weight, summed over heads and queries.
    """
    first, sums, n = kwargs["sparrow_first"], kwargs["sparrow_sums"], query.shape[2]
    places = torch.arange(sums.shape[1], device=query.device)
    future = places > first + torch.arange(n, device=query.device)[:, None]
    groups = query.shape[1] // key.shape[1]
    keys, values = (t[:, :, : len(places)].repeat_interleave(groups, dim=1) for t in (key, value))
    scores = (query @ keys.transpose(2, 3)).float() * scaling
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    sums += weights.sum((1, 2))
    return (weights.to(values.dtype) @ values).transpose(1, 2), None


for _name, _function in ((NAME, _tree_attention), (RANKING, _ranking_attention)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)


@contextlib.contextmanager
def attention_in(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The decoder (not the vision tower) uses attention `name` inside; the one before is restored in any case."""
    text = model.config.get_text_config()
    before = text._attn_implementation
    try:
        model.set_attn_implementation({"text_config": name})
        yield
    finally:
        model.set_attn_implementation({"text_config": before})
