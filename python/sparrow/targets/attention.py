"""Verification through unmodified transformers models: their decoder attention, replaced by `tree_attention`."""

import contextlib
from collections.abc import Iterator

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

import sparrow_ext

NAME = "sparrow_tree"


def _tree_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float | None = None, **kwargs
) -> tuple[Tensor, None]:
    """transformers' attention signature over `tree_attention`; used by verify passes and by nothing else.

    query [B, H, N, D]; key and value are the cache's whole buffer [B, K, capacity, D]; attention_mask carries the
    tree's ancestor words, int64 [B, 1, N, W] (a 4-D mask travels through every model untouched).
    """
    lengths: Tensor | None = kwargs.get("sparrow_lengths")
    if lengths is None:
        raise RuntimeError("the model is verifying a draft tree: only sparrow's decode loop may call it now")
    out, _ = sparrow_ext.tree_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        lengths,
        anc=attention_mask.squeeze(1),
        scale=scaling,
        max_prefix_len=kwargs["sparrow_max_length"],
    )
    return out, None


AttentionInterface.register(NAME, _tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def tree_attention_in(model: PreTrainedModel) -> Iterator[None]:
    """The decoder (not the vision tower) uses tree_attention inside; what it used before is restored in any case."""
    text = model.config.get_text_config()
    before = text._attn_implementation
    try:
        model.set_attn_implementation({"text_config": NAME})
        yield
    finally:
        model.set_attn_implementation({"text_config": before})
