"""The shipped pair, widened so that two ranks can split it: four heads in place of three, 256 columns in place of 192.

The same function: the new head is zero, the new columns are zero, and each norm's weight and epsilon make up for the
mean over more columns.
"""

import json
import pathlib
import shutil
import types

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparrow.targets.adapter import fingerprint_of, head_rows

OLD, NEW, HEAD = 192, 256, 64
SCALE = (OLD / NEW) ** 0.5


def _target(name: str, x: Tensor) -> Tensor:
    """A weight of the target over hidden columns and heads, with zeros for the new ones."""
    if "visual" in name:  # only its last layer's rows are the text's columns
        return _pad(x, 0) if "merger.mlp.2" in name else x
    if "norm" in name:
        return _pad(x * SCALE, 0)
    for axis in range(x.dim()):
        x = _pad(x, axis) if x.shape[axis] == OLD else x
    return x


def _drafter(name: str, x: Tensor) -> Tensor:
    """The same of the drafter, whose heads stay three: every rank drafts by itself."""
    if name == "fc.weight":
        return torch.cat([_pad(_pad(half, 1), 0) for half in x.split(OLD, dim=1)], dim=1)
    if "norm" in name:
        return _pad(x * SCALE, 0)
    if "o_proj" in name or "down_proj" in name:
        return _pad(x, 0)
    return x if x.dim() == 1 else _pad(x, 1)


def _pad(x: Tensor, axis: int) -> Tensor:
    shape = list(x.shape)
    shape[axis] = NEW - shape[axis]
    return torch.cat([x, x.new_zeros(shape)], dim=axis)


def widen_target(source: pathlib.Path, folder: pathlib.Path) -> Tensor:
    """Writes the target to `folder`; returns its embedding."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text |= {"hidden_size": NEW, "num_attention_heads": NEW // HEAD, "rms_norm_eps": text["rms_norm_eps"] * OLD / NEW}
    config["vision_config"]["out_hidden_size"] = NEW
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    made = {name: _target(name, x.float()).contiguous() for name, x in weights.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return made["model.embed_tokens.weight"]


def widen_drafter(source: pathlib.Path, folder: pathlib.Path, embedding: Tensor) -> None:
    """Writes the drafter that fits it."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": NEW, "rms_norm_eps": config["rms_norm_eps"] * OLD / NEW}
    made_for = config["target"]
    text = types.SimpleNamespace(hidden_size=NEW, num_hidden_layers=made_for["num_layers"])
    config["target"] = fingerprint_of(made_for["family"], text, len(embedding), head_rows(embedding))
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    save_file({name: _drafter(name, x).contiguous() for name, x in weights.items()}, folder / "model.safetensors")
