"""A target whose text rows cannot see visual tokens from some layer on: where is the video taken in?"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from sparrow.targets.adapter import Target

NAME = "sparrow_layer_cut"


@contextlib.contextmanager
def layer_cut(model: PreTrainedModel, first: int) -> Iterator[None]:
    """Inside, from decoder layer `first` on, the rows of text tokens attend to text rows only.

    For whole-sequence forward passes by input_ids, without a cache and without padding on the left. Visual rows see
    what they saw; `first` = number of layers changes nothing, 0 leaves a target that never sees the video.

    Args:
        model: a supported target; its attention is what it was before, afterwards.
        first: layer, 0 to the number of layers.

    Raises:
        ValueError: `first` out of range.
    """
    target = Target(model)
    if not 0 <= first <= target.num_layers:
        raise ValueError(f"first must lie in [0, {target.num_layers}], got {first}")
    visual: list[Tensor] = []

    def see(module, args, kwargs) -> None:
        visual[:] = [~target.is_text(kwargs["input_ids"])]

    def attention(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling=None, **_):
        n = query.shape[2]
        allowed = torch.ones(n, n, dtype=torch.bool, device=query.device).tril()[None]
        if module.layer_idx >= first:
            allowed = allowed & ~(~visual[0][:, :, None] & visual[0][:, None, :])
        out = F.scaled_dot_product_attention(query, key, value, allowed[:, None], scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    before = target.config._attn_implementation
    hook = model.model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        model.set_attn_implementation({"text_config": NAME})
        yield
    finally:
        hook.remove()
        model.set_attn_implementation({"text_config": before})
