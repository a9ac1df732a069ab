"""What the commands load: targets, drafters, devices; faults are named by the command line's options."""

import pathlib
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

import sparrow_ext
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.specvlm import SpecVLM
from sparrow.targets.adapter import FAMILIES, Target


def target_folder(name: str) -> pathlib.Path:
    """The local folder of a target: the path itself, or the files of a hub id (weights come when the model loads)."""
    folder = pathlib.Path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"--target: no such model folder: {name}")
    from huggingface_hub import snapshot_download

    try:
        return pathlib.Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors"]))
    except Exception as error:  # many kinds, all meaning the same to the user
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"--target: {name} is no folder here and cannot be had from the hub: {reason}"
        ) from error


def pick_device(name: str | None) -> torch.device:
    """The device asked for; by default CUDA where there is a GPU and our kernels were built for it."""
    if name is None:
        usable = torch.cuda.is_available() and sparrow_ext.has_cuda_kernels("tree_attention")
        return torch.device("cuda" if usable else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch ({torch.__version__}) sees no GPU")
    if device.type == "cuda" and not sparrow_ext.has_cuda_kernels("tree_attention"):
        raise ValueError(f"--device {name}: sparrow was built without CUDA kernels: SPARROW_CUDA=ON pip install -e .")
    return device


def load_target(folder: pathlib.Path, dtype: str, device: torch.device, remote_code: bool):
    """Model (safetensors only) and tokenizer. Raises ValueError for a family that is not supported."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
    if config.model_type not in FAMILIES:
        raise ValueError(f"--target must be one of {', '.join(FAMILIES.values())}; {folder} is a {config.model_type!r}")
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=kind, use_safetensors=True, trust_remote_code=remote_code
        )
    except SafetensorError as error:
        raise ValueError(f"--target: the weights in {folder} are not safetensors, or cut short: {error}") from None
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
    return model.to(device).eval(), tokenizer


def pick_drafter(name: str | None, model) -> SparrowDrafter | SpecVLM | None:
    """The drafter in the folder `name`; "specvlm" = the target itself; None = none."""
    if name is None or name == "specvlm":
        return None if name is None else SpecVLM()
    return load_drafter(name, model)


def load_drafter(folder: str, model, **overrides: Any) -> SparrowDrafter:
    """The drafter, in the target's dtype and on its device, checked against it; overrides: see from_pretrained."""
    drafter = SparrowDrafter.from_pretrained(folder, **overrides).place(model.device, model.dtype)
    drafter.attach(Target(model))
    return drafter
