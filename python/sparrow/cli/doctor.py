"""`sparrow doctor`: what is installed, what is built, and whether decoding is lossless here."""

import importlib.metadata
import importlib.util
import platform
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import sparrow
import sparrow_ext
from sparrow.cli.arguments import Doctor
from sparrow.cli.fitting import findings
from sparrow.cli.loading import pick_device, quiet
from sparrow.cli.places import drafter_folder, target_folder
from sparrow.progress import track
from sparrow.targets.adapter import FAMILIES, Target
from sparrow.targets.tiny import tiny_target
from sparrow.targets.versions import TESTED, outside_tested

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "av", "rich", "flash-attn")
SELF_TESTS = ("qwen2_5_vl", "llava_onevision")
TRAINING = {"pyyaml": "yaml", "matplotlib": "matplotlib"}
out = Console()


def run(arguments: Doctor) -> int:
    """Prints the findings, and what to do next; exit code 1 where the self-test fails."""
    quiet()
    table = Table("what", "finding", title=f"sparrow {sparrow.__version__}", title_justify="left")
    table.add_row("Python", f"{platform.python_version()} on {platform.machine()}")
    for name in PACKAGES:
        table.add_row(name, _version(name))
    table.add_row("CPU kernels", f"{sparrow_ext.cpu_isa()}, {torch.get_num_threads()} thread(s)")
    table.add_row("CUDA kernels", _cuda_kernels())
    table.add_row("GPU", _gpu())
    fits = True
    if arguments.target:
        folder = target_folder(arguments.target)
        drafter = None if arguments.drafter is None else drafter_folder(arguments.drafter, folder)
        rows, fits = findings(folder, drafter, pick_device(None))
        for row in rows:
            table.add_row(*row)
    passed = True
    for family in track(SELF_TESTS, "testing that small random models decode as with transformers", "families"):
        result = _self_test(family)
        passed &= result.lossless
        table.add_row(f"self-test {FAMILIES[family]}", result.summary())
    out.print(table)
    print("\n".join(["Next:", *(f"  {line}" for line in _next(passed, fits, arguments))]))
    return 0 if passed and fits else 1


def _next(passed: bool, fits: bool, arguments: Doctor) -> list[str]:
    """What the findings ask for, most urgent first; where there is nothing, what to try."""
    if not passed:
        return [
            "this build is not lossless here: do not use it.",
            "build it anew (pip install --force-reinstall --no-deps -e .) and run `sparrow doctor`;",
            "if it fails again, report this table and the processor's name.",
        ]
    steps = []
    if warning := sparrow_ext.gpu_warning():
        steps.append(warning)
    missing = [name for name, module in TRAINING.items() if importlib.util.find_spec(module) is None]
    if missing:
        steps.append(f"to train or evaluate, install {' and '.join(missing)}: pip install 'sparrow-decoding[train]'")
    if not fits:
        return [
            *steps,
            "it does not fit, or target and drafter do not belong together (see the table):",
            "a smaller checkpoint, another device, or `sparrow import` with this --target.",
        ]
    target = arguments.target
    if target is None:
        return [
            *steps,
            "`sparrow demo` shows it at work on the shipped clip;",
            "`sparrow doctor --target FOLDER` checks a model of yours.",
        ]
    if arguments.drafter is None:
        steps += [
            "no drafter yet: `sparrow import CHECKPOINT --target ... --out DRAFTER` takes a public one;",
            f"sparrow train drafter --plan --config qwen2_5_vl_7b target={target} \\",
            "    data.clips=clips.jsonl run=runs/mine    says what training one takes; meanwhile",
        ]
    with_drafter = "" if arguments.drafter is None else f"--drafter {arguments.drafter} "
    question = f"    {with_drafter}--video clip.mp4 --prompt 'What happens?'"
    return [*steps, f"sparrow generate --target {target} \\", question]


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
    return f"{len(built)} of {len(_operators())} operators" if built else sparrow_ext.build_report().splitlines()[0]


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none seen by torch"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _self_test(family: str) -> sparrow.Comparison:
    """32 greedy tokens of a small random model, with a random drafter, beside transformers' own."""
    model = tiny_target(family)
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    ids = torch.randint(3, 280, (1, 12), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return sparrow.compare(model, drafter, **inputs, max_new_tokens=32, eos_token_id=None)
