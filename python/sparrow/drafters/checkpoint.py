"""Weights and config of somebody else's drafter: read without running anything, and every weight accounted for."""

import pathlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparrow.drafters.storage import refuse_not_finite
from sparrow.files import read_json
from sparrow.targets.folder import load_weights, text_config

PICKLE = "pytorch_model.bin"


class Weights:
    """Weights that are taken by name, once each; what nobody took can be told.

    Args:
        tensors: by name; a leading "model." of a name does not count.
        where: their folder.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: pathlib.Path):
        self.tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
        self.where, self.left = where, set(self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The weight; None in the shape is any size. Raises ValueError where it is missing or of another shape."""
        if name not in self.tensors:
            raise ValueError(f"{self.where}: the weight {name} is missing")
        value = self.tensors[name]
        fits = value.dim() == len(shape) and all(w in (None, n) for w, n in zip(shape, value.shape, strict=True))
        if not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(f"{self.where}: {name} must be [{wanted}], got {list(value.shape)}")
        self.left.discard(name)
        return value

    def joined(self, names: Sequence[str], width: int | None) -> Tensor:
        """Weights [n, width] or biases [n] (width None), one below the other."""
        return torch.cat([self.take(name, None, width) if width else self.take(name, None) for name in names])

    def bias(self, names: Sequence[str]) -> Tensor | None:
        """Biases as `joined`; None where there is none. Raises ValueError where some are there and some are not."""
        there = [name for name in names if name in self]
        return self.joined(names, None) if there else None

    def refuse_the_rest(self) -> None:
        """Raises ValueError naming what nobody took: a drafter without it would be another one."""
        if self.left:
            raise ValueError(f"{self.where}: no drafter here has these weights: {', '.join(sorted(self.left))}")


def read(folder: pathlib.Path) -> tuple[dict[str, Any], Any, Weights]:
    """config.json as it is, the text decoder's config in it as transformers reads it, and the weights.

    Raises:
        FileNotFoundError: no config, or no weights.
        ValueError: a damaged file, a pickle with more than tensors, a weight that is not finite, or a config that no
            layer here computes.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no drafter in {folder}: config.json is missing")
    config = read_json(folder / "config.json")
    inner = config.get("transformer_layer_config", config)
    if not isinstance(inner, dict):
        raise ValueError(f"{folder / 'config.json'}: transformer_layer_config must be an object, got {inner!r}")
    text = text_config(inner, folder)
    _refuse_other_layers(text, folder)
    tensors = _unpickled(folder / PICKLE) if _only_pickle(folder) else load_weights(folder)
    refuse_not_finite(tensors, folder)
    return config, text, Weights(tensors, folder)


def _refuse_other_layers(text: Any, folder: pathlib.Path) -> None:
    rope = getattr(text, "rope_parameters", None) or {}
    for name, value, wanted in (
        ("num_hidden_layers", text.num_hidden_layers, (1,)),
        ("hidden_act", text.hidden_act, ("silu", "swish")),
        ("rope_scaling type", rope.get("rope_type", "default"), ("default", "mrope")),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)),
        ("use_sliding_window", bool(getattr(text, "use_sliding_window", False)), (False,)),
    ):
        if value not in wanted:
            raise ValueError(f"{folder}: a drafter's {name} must be {wanted[0]}, got {value!r}")


def _only_pickle(folder: pathlib.Path) -> bool:
    return not any(folder.glob("*.safetensors")) and (folder / PICKLE).is_file()


def _unpickled(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a pickle; no code in it is run. Raises ValueError where it holds anything else."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        fault = "it holds other things than tensors" if isinstance(error, pickle.UnpicklingError) else "it is damaged"
        raise ValueError(f"{file} is refused: {fault}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file} is refused: it must hold tensors by name and nothing else")
    return tensors
