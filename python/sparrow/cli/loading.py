"""What the commands load: targets, drafters, devices; faults are named by the command line's options."""

import pathlib
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

import sparrow_ext
from sparrow.cli.places import drafter_folder
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.specvlm import SpecVLM
from sparrow.progress import Progress
from sparrow.targets.adapter import FAMILIES, Target


def quiet() -> None:
    """No warnings and progress bars of transformers: ours say what matters."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


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


def load_tokenizer(folder: pathlib.Path, remote_code: bool):
    """The tokenizer of a target. Raises ValueError for a family that is not supported."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
    if config.model_type not in FAMILIES:
        raise ValueError(f"--target must be one of {', '.join(FAMILIES.values())}; {folder} is a {config.model_type!r}")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)


def load_target(folder: pathlib.Path, dtype: str, device: torch.device, remote_code: bool):
    """Model and tokenizer. Raises ValueError for a family that is not supported."""
    tokenizer = load_tokenizer(folder, remote_code)
    return load_model(folder, dtype, device, remote_code), tokenizer


def load_model(folder: pathlib.Path, dtype: str, device: torch.device, remote_code: bool):
    """The model, from safetensors only, of a family that load_tokenizer has checked."""
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        with Progress("loading the target"):
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=kind, use_safetensors=True, trust_remote_code=remote_code
            )
            return model.to(device).eval()
    except SafetensorError as error:
        raise ValueError(f"--target: the weights in {folder} are not safetensors, or cut short: {error}") from None


def read_drafter(
    name: str | None, target: pathlib.Path | None = None, **overrides: Any
) -> SparrowDrafter | SpecVLM | None:
    """The drafter called `name`, bound to no target yet; "specvlm" = the target itself; None = none.

    Args:
        name: a folder or hub id, see places.drafter_folder; or a word.
        target: the target's folder, for which a public checkpoint is imported.
        overrides: see SparrowDrafter.from_pretrained.
    """
    if name is None or name == "specvlm":
        return None if name is None else SpecVLM()
    return SparrowDrafter.from_pretrained(drafter_folder(name, target), **overrides)


def bind(drafter: SparrowDrafter | SpecVLM | None, model) -> SparrowDrafter | SpecVLM | None:
    """The drafter, in the target's dtype and on its device, checked against it."""
    if isinstance(drafter, SparrowDrafter):
        drafter.place(model.device, model.dtype).attach(Target(model))
    return drafter


def load_drafter(folder: str, model, **overrides: Any) -> SparrowDrafter:
    """The drafter of a folder, bound to the model; overrides: see SparrowDrafter.from_pretrained."""
    drafter = bind(read_drafter(folder, **overrides), model)
    assert isinstance(drafter, SparrowDrafter)
    return drafter
