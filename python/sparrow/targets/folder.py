"""What a target's folder says without the model being loaded: its config, its tables, its fingerprint."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig

from sparrow.targets.adapter import FAMILIES, fingerprint_of

INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


class TargetFolder:
    """The folder of a video LLM, safetensors.

    Attributes:
        config: of transformers; text: the text decoder's.
        family: its model_type.
        where: file of each weight.

    Raises:
        ValueError: not a family of FAMILIES, or files that are damaged.
        FileNotFoundError: no weights.
    """

    def __init__(self, folder: str | pathlib.Path, remote_code: bool = False):
        self.folder = pathlib.Path(folder)
        self.config = AutoConfig.from_pretrained(self.folder, trust_remote_code=remote_code)
        self.text, self.family = self.config.get_text_config(), str(self.config.model_type)
        if self.family not in FAMILIES:
            raise ValueError(f"a target must be one of {', '.join(FAMILIES.values())}; {folder} is a {self.family!r}")
        self.where = weights_in(self.folder)

    def tensor(self, name: str, step: int = 1) -> Tensor:
        """Every `step`-th row of the one weight whose name ends so. Raises ValueError for none or several."""
        found = [key for key in self.where if key == name or key.endswith("." + name)]
        if len(found) != 1:
            raise ValueError(f"{self.folder} must hold one weight {name}, found {len(found)}")
        with safe_open(self.where[found[0]], framework="pt") as file:
            rows = file.get_slice(found[0])
            return rows[::step] if step > 1 else rows[:]

    @property
    def embedding(self) -> Tensor:
        """The token embedding table [V, E], in the checkpoint's dtype."""
        return self.tensor(EMBEDDING)

    @property
    def has_head(self) -> bool:
        """Whether the LM head is a weight of its own, and not the embedding."""
        return any(key == HEAD or key.endswith("." + HEAD) for key in self.where)

    @property
    def vocab_size(self) -> int:
        name = next(key for key in self.where if key.endswith(EMBEDDING))
        with safe_open(self.where[name], framework="pt") as file:
            return int(file.get_slice(name).get_shape()[0])

    def fingerprint(self) -> dict[str, object]:
        """As Target.fingerprint of the model loaded in the checkpoint's dtype."""
        rows = self.vocab_size
        sample = self.tensor(HEAD if self.has_head else EMBEDDING, max(1, rows // 64))
        return fingerprint_of(self.family, self.text, rows, sample)

    def bytes(self) -> int:
        """Of all weights on disk."""
        return sum(file.stat().st_size for file in set(self.where.values()))

    def dtype(self) -> torch.dtype:
        """The embedding's."""
        return self.tensor(EMBEDDING, 2**20).dtype


def weights_in(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The safetensors file of each weight in a folder, sharded or not.

    Raises:
        FileNotFoundError: there is none, or one that the index names is missing.
        ValueError: a file is damaged.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = {k: folder / v for k, v in json.loads(index.read_text())["weight_map"].items()}
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{index} is damaged: it must hold a weight_map") from None
        if missing := sorted({str(file) for file in names.values() if not file.is_file()}):
            raise FileNotFoundError(f"{index} names {missing[0]}, which is missing")
        return names
    found: dict[str, pathlib.Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        except SafetensorError as error:
            raise ValueError(f"{file} is not safetensors, or cut short: {error}") from None
    if not found:
        raise FileNotFoundError(f"no safetensors in {folder}")
    return found


def load_weights(folder: pathlib.Path) -> dict[str, Tensor]:
    """All weights of a folder's safetensors, sharded or not. Raises as weights_in."""
    tensors = {}
    for name, file in weights_in(folder).items():
        with safe_open(file, framework="pt") as opened:
            tensors[name] = opened.get_tensor(name)
    return tensors


def text_config(values: Mapping[str, Any], where: pathlib.Path) -> Any:
    """The text decoder's config of a config.json, with transformers' defaults for what it does not say.

    Raises:
        ValueError: no model_type that transformers knows; `where` is named.
    """
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"{where}: model_type must be one that transformers knows, got {kind!r}")
    rest = {name: value for name, value in values.items() if name not in ("model_type", "architectures")}
    return AutoConfig.for_model(kind, **rest).get_text_config()
