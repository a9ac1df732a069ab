"""SmolLM2 as the text model of transformers' unmodified Qwen2_5_VLForConditionalGeneration.

Qwen's decoder has biases on q, k and v, which are zero here, and M-RoPE, whose axes agree on text: for text it is the
Llama it was, logit for logit. The vision tower is the miniature's, with a merger of the language model's width.
"""

import pathlib
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sparrow.files import replacing, write_json
from sparrow.miniature.model import SETTINGS
from sparrow.miniature.shipped import pair
from sparrow.smollm2 import lora
from sparrow.smollm2.convert import IMAGE, VIDEO, VISION_END, VISION_START, Language
from sparrow.smollm2.package import LICENCE, ORIGIN
from sparrow.video import save_settings

# Frequencies (of 32, from the fastest) that turn with time, row and column: a step in each must be seen.
SECTIONS = [2, 4, 26]
TOKENS_PER_SECOND = 1  # positions per second: the two fastest frequencies tell the seconds of a clip apart
TOWER = "visual."


def build(language: Language) -> PreTrainedModel:
    """The model, float32, in evaluation mode; the merger's last matrix is random (seed 0).

    Args:
        language: from `convert.read`.
    """
    miniature = pair()[0]
    vision = AutoConfig.from_pretrained(miniature).vision_config.to_dict()
    text = dict(language.text)
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta"), "mrope_section": SECTIONS}
    names = {"video": VIDEO, "image": IMAGE, "vision_start": VISION_START, "vision_end": VISION_END}
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope, "tie_word_embeddings": True, "use_sliding_window": False},
        vision_config=vision | {"out_hidden_size": text["hidden_size"], "tokens_per_second": TOKENS_PER_SECOND},
        tie_word_embeddings=True,
        **{f"{name}_token_id": language.tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
    _load(model.model.language_model, language.state, absent="_proj.bias")
    for name, parameter in model.model.language_model.named_parameters():
        if name.endswith("_proj.bias"):
            torch.nn.init.zeros_(parameter)
    _load(model.model.visual, _miniature_tower(miniature), absent="merger.mlp.2.")
    model.tie_weights()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, text[name])
    return model.eval()


def _miniature_tower(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    inner = {name.partition(TOWER)[2]: value.float() for name, value in weights.items() if TOWER in name}
    return {name: value for name, value in inner.items() if not name.startswith("merger.mlp.2.")}


def _load(module: Any, state: dict[str, torch.Tensor], absent: str) -> None:
    """load_state_dict, where only what `absent` names may be absent."""
    missing, unexpected = module.load_state_dict(state, strict=False)
    if unexpected or (strange := [name for name in missing if absent not in name]):
        raise ValueError(f"the weights do not fit: {(unexpected or strange)[0]}")


def load_tower(model: PreTrainedModel, taught: dict[str, torch.Tensor]) -> None:
    """Replaces the vision tower by that of a training's result.

    Raises:
        ValueError: a weight of it is missing or strange.
    """
    tower = {name.removeprefix(TOWER): value.float() for name, value in taught.items() if name.startswith(TOWER)}
    _load(model.model.visual, tower, absent=" ")


def teach(model: PreTrainedModel, taught: dict[str, torch.Tensor]) -> None:
    """Puts a training's result into a model from `build`: the tower replaced, the adapters merged.

    Raises:
        ValueError: a weight is missing or strange.
    """
    load_tower(model, taught)
    lora.merge(model.model.language_model, {n: value for n, value in taught.items() if not n.startswith(TOWER)})


def save(model: PreTrainedModel, tokenizer: Any, folder: pathlib.Path, about: dict[str, Any]) -> None:
    """A folder that transformers and sparrow load: weights, config, tokenizer, template, settings, origin.json."""
    with replacing(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        save_settings(SETTINGS, new)
        write_json(new / "origin.json", {"origin": ORIGIN, "licence": LICENCE, **about})
