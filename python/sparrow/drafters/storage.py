"""A drafter's folder: config.json and model.safetensors."""

import pathlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparrow.drafters.compressor import without_summary
from sparrow.drafters.config import DrafterConfig
from sparrow.files import replacing, write_json, write_tensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save(config: DrafterConfig, weights: Mapping[str, Tensor], folder: str | pathlib.Path) -> None:
    """Writes both files."""
    with replacing(folder) as new:
        write_json(new / CONFIG_FILE, asdict(config))
        write_tensors(new / WEIGHTS_FILE, weights)


def load(folder: str | pathlib.Path, overrides: Mapping[str, object]) -> tuple[DrafterConfig, dict[str, Tensor]]:
    """Reads both files; overrides: fields of DrafterConfig to be replaced.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the config does not fit the format, the weights are damaged, or one is not finite.
    """
    folder = pathlib.Path(folder)
    _require(folder, CONFIG_FILE)
    try:
        config = DrafterConfig.from_json((folder / CONFIG_FILE).read_text(), **overrides)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} does not fit: {error}") from None
    _require(folder, WEIGHTS_FILE)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is not safetensors, or cut short: {error}") from None
    refuse_not_finite(weights, folder)
    if config.visual == "none" and "compressor.fusion.weight" in weights:
        return _blind(config, weights)
    return config, weights


def _blind(config: DrafterConfig, weights: Mapping[str, Tensor]) -> tuple[DrafterConfig, dict[str, Tensor]]:
    """What is left of a drafter with visual=compressed that shall see no video."""
    fusion = [weights[f"compressor.fusion.{name}"] for name in ("weight", "bias")]
    kept = {name: value for name, value in weights.items() if not name.startswith("compressor.")}
    kept["fc.weight"], kept["fc.bias"] = without_summary(kept["fc.weight"], kept.get("fc.bias"), *fusion)
    return replace(config, fc_bias=True), kept


def refuse_not_finite(weights: Mapping[str, Tensor], folder: pathlib.Path) -> None:
    """Raises ValueError naming the first weight that is not finite."""
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"the weights in {folder} must be finite: {name} is not")


def shape_of(text: Any) -> dict[str, object]:
    """The fields of DrafterConfig that say what a layer is like, of a text config of transformers."""
    rope = getattr(text, "rope_parameters", None) or {}
    heads = int(text.num_attention_heads)
    return {
        "hidden_size": int(text.hidden_size),
        "num_heads": heads,
        "num_kv_heads": int(getattr(text, "num_key_value_heads", None) or heads),
        "head_dim": int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        "intermediate_size": int(text.intermediate_size),
        "rms_norm_eps": float(text.rms_norm_eps),
        "rope_theta": float(rope.get("rope_theta", 10000.0)),
    }


def _require(folder: pathlib.Path, name: str) -> None:
    """Raises FileNotFoundError where a drafter's folder lacks a file."""
    if not (folder / name).is_file():
        raise FileNotFoundError(f"no drafter in {folder}: {name} is missing")
