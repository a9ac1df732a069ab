"""`sparrow eval`: tau, speed and losslessness on held-out synthetic clips, with intervals; JSON, table, pictures."""

import argparse
import importlib.util
import json
import pathlib
import shlex
import sys
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sparrow.cli_generate import load_drafter, load_target, pick_device, target_folder
from sparrow.evaluation.evaluate import Evaluation, Plan, lossless
from sparrow.evaluation.render import markdown, plots
from sparrow.evaluation.systems import LOOKUP, SPECVLM, System
from sparrow.miniature import SHIPPED, drafter_folder, pair
from sparrow.provenance import provenance
from sparrow.video import PatchSettings, load_settings

err = Console(stderr=True)
PAPER_TREE = "25-5-8"
QUICK = {"lengths": (64, 256, 1024), "temperatures": (0.0, 1.0), "clips": 10, "timed": 4}
FULL = {
    "lengths": (64, 128, 256, 512, 1024, 2048, 4096),
    "temperatures": (0.0, 1.0),
    "clips": 100,
    "timed": 20,
}


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 where an output of ours is not the reference's."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("sparrow eval draws with matplotlib: pip install 'sparrow-decoding[train]'")
    if arguments.render:
        return render(pathlib.Path(arguments.render))
    if arguments.watch or arguments.layer_cut:
        from sparrow.cli_eval_visual import run as run_visual

        return run_visual(arguments)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    settings, model, tokenizer = target(arguments)
    drafters, systems = systems_of(arguments, model)
    plan = plan_of(arguments, systems)
    out = pathlib.Path(arguments.out or "sparrow_eval.json")
    tapes = pathlib.Path(arguments.tapes) if arguments.tapes else out.parent / "tapes"
    with progress() as bar:
        steps = len(plan.lengths) * len(plan.temperatures) * plan.clips
        task = bar.add_task("", total=steps)
        evaluation = Evaluation(
            plan, model, tokenizer, settings, drafters, tapes,
            lambda text, clips: bar.update(task, description=text, advance=clips),
        )  # fmt: skip
        result = evaluation.write(out, provenance("sparrow " + shlex.join(sys.argv[1:])))
    render(out)
    return 0 if lossless(result) else 1


def plan_of(arguments: argparse.Namespace, systems: list[System]) -> Plan:
    """What the options ask for; what they leave open comes from QUICK or FULL."""
    defaults: dict[str, Any] = QUICK if arguments.quick else FULL
    clips = arguments.clips or defaults["clips"]
    live = arguments.live or clips
    return Plan(
        systems=tuple(systems),
        lengths=tuple(arguments.lengths or defaults["lengths"]),
        temperatures=tuple(defaults["temperatures"] if arguments.temperature is None else arguments.temperature),
        split=arguments.split,
        clips=clips,
        live=live,
        timed=arguments.timed or min(defaults["timed"], live),
        runs=arguments.runs,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        clock=arguments.clock,
    )


def target(arguments: argparse.Namespace) -> tuple[PatchSettings, Any, Any]:
    """(settings, model, tokenizer) of --target, or of the shipped pair."""
    folder = target_folder(arguments.target) if arguments.target else pair(SHIPPED)[0]
    with err.status("loading the target"):
        model, tokenizer = load_target(folder, arguments.dtype, pick_device(arguments.device), False)
    settings = load_settings(folder)
    if not isinstance(settings, PatchSettings):
        raise ValueError(f"--target: the synthetic world's lengths need a Qwen target, got a {settings.family}")
    return settings, model, tokenizer


def systems_of(arguments: argparse.Namespace, model: Any) -> tuple[dict[str, Any], list[System]]:
    """Loaded drafters and systems: one per drafter and tree, and those that need no drafter."""
    folders = dict(_named(text) for text in arguments.drafter) if arguments.drafter else {"sparrow": "shipped"}
    drafters, systems = {}, []
    for name, folder in folders.items() if "sparrow" in arguments.systems else ():
        drafter = load_drafter(str(drafter_folder(folder)), model)
        for tree in arguments.tree or dict.fromkeys([drafter.config.tree, PAPER_TREE]):
            system = System(f"{name} {tree}", "sparrow", folder, str(tree))
            systems.append(system)
            drafters[system.name] = drafter
    others = {"lookup": LOOKUP, "specvlm": SPECVLM}
    return drafters, systems + [system for name, system in others.items() if name in arguments.systems]


def _named(text: str) -> tuple[str, str]:
    """("name", "folder") of name=folder; a folder alone is called by its own name."""
    name, equals, folder = text.partition("=")
    return (name, folder) if equals else (pathlib.Path(text).resolve().name, text)


def progress() -> Progress:
    """A bar on stderr."""
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err)


def render(file: pathlib.Path) -> int:
    """Prints the table; writes it and the pictures next to the JSON."""
    if not file.is_file():
        raise FileNotFoundError(f"--render: no such file: {file}")
    result = json.loads(file.read_text())
    if not (result.get("cells") or result.get("rows")):
        raise ValueError(f"--render: {file} holds no finished cell of an evaluation")
    if "rows" in result:
        from sparrow.cli_eval_visual import render as render_visual

        text = render_visual(result, file)
    else:
        text = markdown(result)
        plots(result, file.parent, file.stem)
    print(text)
    file.with_suffix(".md").write_text(text)
    err.print(f"[dim]table and pictures beside {file}[/dim]")
    return 0
