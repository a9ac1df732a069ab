"""`sparrow doctor`: what is installed, what is built, and whether decoding is lossless here."""

import argparse
import importlib.metadata
import pathlib
import platform

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

import sparrow
import sparrow_ext
from sparrow.targets.adapter import FAMILIES, Target
from sparrow.targets.tiny import tiny_target
from sparrow.targets.versions import TESTED, outside_tested

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "av", "rich", "flash-attn")
out = Console()


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; exit code 1 where the self-test fails."""
    transformers.logging.set_verbosity_error()
    table = Table("what", "finding", title=f"sparrow {sparrow.__version__}", title_justify="left")
    table.add_row("Python", f"{platform.python_version()} on {platform.machine()}")
    for name in PACKAGES:
        table.add_row(name, _version(name))
    table.add_row("CPU kernels", f"{sparrow_ext.cpu_isa()}, {torch.get_num_threads()} threads")
    table.add_row("CUDA kernels", _cuda_kernels())
    table.add_row("GPU", _gpu())
    if arguments.target:
        table.add_row("target", _target(pathlib.Path(arguments.target)))
    passed = True
    for family in ("qwen2_5_vl", "llava_onevision"):
        result = _self_test(family)
        passed &= result.lossless
        table.add_row(f"self-test {FAMILIES[family]}", result.summary())
    out.print(table)
    return 0 if passed else 1


def _version(name: str) -> str:
    try:
        release = importlib.metadata.version(name)
        return (outside_tested(name, release) if name in TESTED else None) or release
    except importlib.metadata.PackageNotFoundError:
        return "not installed (optional)" if name == "flash-attn" else "not installed"


def _operators() -> list[str]:
    return sorted(name for name in sparrow_ext.__all__ if f"sparrow::{name}" in _schemas())


def _schemas() -> set[str]:
    return {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("sparrow::")}


def _cuda_kernels() -> str:
    built = [name for name in _operators() if sparrow_ext.has_cuda_kernels(name)]
    return f"{len(built)} of {len(_operators())} operators" if built else sparrow_ext.build_report()


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none seen by torch"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _target(folder: pathlib.Path) -> str:
    if not folder.is_dir():
        raise FileNotFoundError(f"--target: no such model folder: {folder}")
    config = AutoConfig.from_pretrained(folder)
    known = FAMILIES.get(config.model_type)
    weights = sorted(p.name for p in folder.glob("*.safetensors"))
    return f"{known or 'unsupported: ' + config.model_type}, {len(weights)} safetensors file(s)"


def _self_test(family: str) -> sparrow.Comparison:
    """32 greedy tokens of a small random model, with a random drafter, beside transformers' own."""
    model = tiny_target(family)
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    ids = torch.randint(3, 280, (1, 12), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return sparrow.compare(model, drafter, inputs, max_new_tokens=32, eos_token_id=None)
