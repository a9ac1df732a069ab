"""The miniature: a Qwen2.5-VL of a few million parameters that is really trained, on the synthetic world.

Same architecture class, prompt and processing as the 7B model; frames of 64 to 128 pixels, 16 x 16 pixels x 2 frames
to a visual token.
"""

import contextlib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from sparrow.miniature.tokenizer import SENTENCES, build_tokenizer
from sparrow.video import PatchSettings

PATCH, MERGE, FRAMES_PER_PATCH, TOKENS_PER_SECOND = 8, 2, 2, 4
SETTINGS = PatchSettings(
    family="qwen2_5_vl", patch_size=PATCH, merge_size=MERGE, temporal_patch_size=FRAMES_PER_PATCH, fps=4.0,
    min_pixels=64 * 64, max_pixels=128 * 128, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5), min_frames=4,
    max_frames=768,
)  # fmt: skip
VOCABULARY = 640
ROPE_THETA = 100.0  # the usual 10,000 leaves neighbouring places of a small grid too alike to be learned


@dataclass(frozen=True)
class MiniatureSize:
    """Sizes of decoder and vision tower. Head size 64 is what the CUDA kernels take."""

    hidden: int = 192
    layers: int = 8
    heads: int = 3
    kv_heads: int = 1
    intermediate: int = 512
    vision_hidden: int = 96
    vision_layers: int = 3
    vision_heads: int = 3
    vision_intermediate: int = 256


def miniature_tokenizer(texts) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the world's texts and some general ones."""
    return build_tokenizer(VOCABULARY, [*SENTENCES, *texts])


def build_miniature(tokenizer: PreTrainedTokenizerFast, size: MiniatureSize, seed: int) -> PreTrainedModel:
    """The untrained model."""
    half = size.hidden // size.heads // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=size.hidden, intermediate_size=size.intermediate,
            num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
            max_position_embeddings=32768, bos_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": sections},
        ),
        vision_config=dict(
            depth=size.vision_layers, hidden_size=size.vision_hidden, intermediate_size=size.vision_intermediate,
            num_heads=size.vision_heads, patch_size=PATCH, spatial_merge_size=MERGE,
            temporal_patch_size=FRAMES_PER_PATCH, window_size=64, out_hidden_size=size.hidden,
            fullatt_block_indexes=list(range(size.vision_layers)), tokens_per_second=TOKENS_PER_SECOND,
        ),
        tie_word_embeddings=True, **ids,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@contextlib.contextmanager
def trainable(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model trains several times faster on a CPU, with the same mathematics.

    The patch embedding is one matrix product instead of a convolution; all frames of a batch go through vision
    attention together (they must be of one size); text attention is causal, with no mask and no copies of keys, values.
    """
    AttentionInterface.register("sparrow_train", _causal_attention)
    AttentionMaskInterface.register("sparrow_train", lambda *args, **kwargs: None)
    text = model.config.get_text_config()
    before = text._attn_implementation
    tower = model.model.visual
    try:
        model.set_attn_implementation({"text_config": "sparrow_train"})
        tower.patch_embed.forward = types.MethodType(_patches_by_product, tower.patch_embed)
        for block in tower.blocks:
            block.attn.forward = types.MethodType(_attention_of_equal_frames, block.attn)
        yield
    finally:
        model.set_attn_implementation({"text_config": before})
        for module in [tower.patch_embed, *(block.attn for block in tower.blocks)]:
            module.__dict__.pop("forward", None)


def _patches_by_product(self: Any, pixels: Tensor) -> Tensor:
    weight = self.proj.weight
    return F.linear(pixels.to(weight.dtype), weight.flatten(1))


def _attention_of_equal_frames(self: Any, hidden_states: Tensor, cu_seqlens, position_embeddings=None, **_):
    rows = hidden_states.shape[0]
    frame = rows // (cu_seqlens.shape[0] - 1)
    q, k, v = self.qkv(hidden_states).reshape(rows, 3, self.num_heads, -1).unbind(1)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (
        t.view(-1, frame, self.num_heads, t.shape[-1]).transpose(1, 2).to(hidden_states.dtype) for t in (q, k, v)
    )
    weights = torch.softmax(q @ k.transpose(2, 3) * self.scaling, -1)
    return self.proj((weights.to(v.dtype) @ v).transpose(1, 2).reshape(rows, -1))


def _causal_attention(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling=None, **_):
    """Plain products: their backward is faster than the fused attention's on a CPU, up to some length."""
    b, heads, n, d = query.shape
    if n > 640:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    kv = key.shape[1]
    later = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
    scores = torch.matmul(query.reshape(b, kv, -1, d) * scaling, key.transpose(2, 3)).view(b, heads, n, n)
    weights = scores.masked_fill(later, float("-inf")).softmax(-1).to(value.dtype)
    return torch.matmul(weights.view(b, kv, -1, n), value).view(b, heads, n, d).transpose(1, 2), None
