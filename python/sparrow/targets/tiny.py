"""Small random video LLMs of every supported family, built from config: no weights to download.

They have the real architectures and code paths and nothing to say: for tests and the self-test.
"""

import math
from dataclasses import dataclass

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)


@dataclass(frozen=True)
class TinySize:
    """Sizes of the text decoder, and the token ids the model gives a meaning to."""

    vocab_size: int = 300
    hidden_size: int = 64
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 128
    eos_token_id: int = 1
    pad_token_id: int = 2
    image_token_id: int = 290
    video_token_id: int = 291
    vision_start_token_id: int = 292
    vision_end_token_id: int = 293


def tiny_target(
    family: str, seed: int = 0, size: TinySize | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A random model of the family ("qwen2_5_vl", "llava_onevision", ...) in evaluation mode.

    The weights depend on the seed; their scale is chosen so that greedy text does not fall into a short loop.

    Raises:
        ValueError: an unknown family.
    """
    if family not in _BUILDERS:
        raise ValueError(f"family must be one of {', '.join(_BUILDERS)}; got {family!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[family](size or TinySize())
        _randomise(model)
    return model.to(dtype).eval()


def sized_target(family: str, size: TinySize, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model of any size, allocated on `device` in `dtype`, with the weights transformers starts training from."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return _BUILDERS[family](size).eval()
    finally:
        torch.set_default_dtype(before)


def _randomise(model: PreTrainedModel) -> None:
    """Every matrix gets gain / sqrt(fan-in): attention and MLPs then matter as they do in a trained model."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                gain = 1.0 if "embed_tokens" in name or "lm_head" in name else 1.3
                fan_in = 1.0 if "embed_tokens" in name else math.sqrt(p[0].numel())
                p.copy_(torch.randn(p.shape) * (gain / fan_in))


def _text(s: TinySize, **more: object) -> dict[str, object]:
    return {
        "vocab_size": s.vocab_size, "hidden_size": s.hidden_size, "intermediate_size": s.intermediate_size,
        "num_hidden_layers": s.num_layers, "num_attention_heads": s.num_heads, "num_key_value_heads": s.num_kv_heads,
        "max_position_embeddings": 32768, "bos_token_id": 0, "eos_token_id": s.eos_token_id,
        "pad_token_id": s.pad_token_id, "tie_word_embeddings": False, **more,
    }  # fmt: skip


def _rope(s: TinySize, sections: bool = False, **more: object) -> dict[str, object]:
    half = s.hidden_size // s.num_heads // 2
    mrope = {"mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]} if sections else {}
    return {"rope_type": "default", "rope_theta": 10000.0, **mrope, **more}


def _qwen_tokens(s: TinySize) -> dict[str, object]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(s, name) for name in names} | {"tie_word_embeddings": False}


def _qwen2_5_vl(s: TinySize) -> PreTrainedModel:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
        "out_hidden_size": s.hidden_size, "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }  # fmt: skip
    text = _text(s, rope_parameters=_rope(s, sections=True))
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_tokens(s))
    )


def _qwen2_vl(s: TinySize) -> PreTrainedModel:
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": s.hidden_size, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    text = _text(s, rope_parameters=_rope(s, sections=True))
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **_qwen_tokens(s)))


def _qwen3_vl(s: TinySize) -> PreTrainedModel:
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": s.hidden_size, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    rope = _rope(s, sections=True, mrope_interleaved=True)
    text = _text(s, head_dim=s.hidden_size // s.num_heads, rope_parameters=rope)
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_tokens(s)))


def _vision(kind: str) -> dict[str, object]:
    return {
        "model_type": kind, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
    }  # fmt: skip


PINPOINTS = [[56, 112], [112, 56], [112, 112]]  # where an image may be cut into tiles


def _llava_onevision(s: TinySize) -> PreTrainedModel:
    config = LlavaOnevisionConfig(
        text_config=_text(s, model_type="qwen2", rope_parameters=_rope(s)),
        vision_config=_vision("siglip_vision_model") | {"vision_use_head": False},
        image_token_index=s.image_token_id, video_token_index=s.video_token_id, vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=False, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    return LlavaOnevisionForConditionalGeneration(config)


def _internvl(s: TinySize) -> PreTrainedModel:
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [56, 56], "patch_size": [14, 14],
    }  # fmt: skip
    config = InternVLConfig(
        text_config=_text(s, model_type="qwen2", rope_parameters=_rope(s)), vision_config=vision,
        image_token_id=s.video_token_id, image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip
    return InternVLForConditionalGeneration(config)


def _llava_next_video(s: TinySize) -> PreTrainedModel:
    config = LlavaNextVideoConfig(
        text_config=_text(s, model_type="llama", rope_parameters=_rope(s)), vision_config=_vision("clip_vision_model"),
        image_token_index=s.image_token_id, video_token_index=s.video_token_id, vision_feature_layer=-2,
        vision_feature_select_strategy="default", tie_word_embeddings=False, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    return LlavaNextVideoForConditionalGeneration(config)


_BUILDERS = {
    "qwen2_5_vl": _qwen2_5_vl,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "llava_next_video": _llava_next_video,
}
