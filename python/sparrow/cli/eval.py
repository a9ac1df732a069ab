"""`sparrow eval`: the tables of the comparison on held-out synthetic clips; JSON with intervals, Markdown, pictures."""

import argparse
import importlib.util
import pathlib
import shlex
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sparrow.cli import eval_visual
from sparrow.cli.loading import load_drafter, load_target, pick_device, target_folder
from sparrow.evaluation.cells import faults
from sparrow.evaluation.evaluate import Evaluation, Known
from sparrow.evaluation.report.render import render
from sparrow.evaluation.systems import System
from sparrow.evaluation.tables import TABLES, Arm, Plan, Table, grid, systems, table_of
from sparrow.files import lock, read_json, write_text
from sparrow.miniature.shipped import SHIPPED, drafter_folder, pair
from sparrow.provenance import provenance
from sparrow.video import PatchSettings, load_settings

err = Console(stderr=True)


@dataclass(frozen=True)
class Loaded:
    """The target, and what is known of it in this process."""

    settings: PatchSettings
    model: Any
    tokenizer: Any
    known: Known


OF_SYSTEMS = ("drafter", "tree", "systems", "temperature", "live", "live_others", "timed", "runs")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 where a live output of ours is not the reference's, or not what was replayed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("sparrow eval draws with matplotlib: pip install 'sparrow-decoding[train]'")
    if arguments.render:
        return show(pathlib.Path(arguments.render))
    names = arguments.table or (list(TABLES) if arguments.quick else ["main"])
    tables = [changed(table_of(name, arguments.quick), arguments) for name in dict.fromkeys(names)]
    check(tables, arguments)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    loaded = Loaded(*target(arguments), Known())
    wrong = [fault for table in tables for fault in measure(table, loaded, arguments)]
    for fault in wrong:
        err.print(f"[red]{fault}[/red]")
    return 1 if wrong else 0


def measure(table: Table, loaded: Loaded, arguments: argparse.Namespace) -> list[str]:
    """Measures one table into --out and shows it. Returns what was not as it must be."""
    folder, made = pathlib.Path(arguments.out), provenance("sparrow " + shlex.join(sys.argv[1:]))
    file = folder / f"{table.name}.json"
    with lock(file), progress() as bar:
        if table.visual:
            target_only = (loaded.settings, loaded.model, loaded.tokenizer)
            eval_visual.measure(table, file, made, target_only, arguments, bar)
        else:
            measure_systems(table, file, made, loaded, arguments, bar)
    show(file)
    return faults(read_json(file))


def measure_systems(
    table: Table, file: pathlib.Path, made: dict[str, Any], loaded: Loaded, arguments: argparse.Namespace, bar: Progress
) -> None:
    """Measures a table of systems into the file; made: provenance."""
    tapes = pathlib.Path(arguments.tapes) if arguments.tapes else file.parent / "tapes"
    drafters = {arm.label: drafter_of(arm, loaded.model) for arm in table.arms}
    compared = systems(table, {label: drafter.config.tree for label, drafter in drafters.items()})
    plan = plan_of(table, compared, arguments)
    task = bar.add_task("", total=len(plan.points) * plan.clips)
    tell = lambda text, clips: bar.update(task, description=f"{table.name}: {text}", advance=clips)  # noqa: E731
    bound = {s.name: drafters[s.arm] for s in compared if s.kind == "sparrow"}
    evaluation = Evaluation(
        plan, loaded.model, loaded.tokenizer, loaded.settings, bound, tapes, tell, loaded.known
    )  # fmt: skip
    evaluation.write(file, made)


def changed(table: Table, arguments: argparse.Namespace) -> Table:
    """The table with the drafters, trees, systems and points that the options name."""
    if table.visual:
        return replace(table, points=grid(arguments.lengths or table.lengths, 0.0))
    more: dict[str, Any] = {}
    if arguments.drafter:
        more["arms"] = tuple(Arm(*_named(text)) for text in arguments.drafter)
    if arguments.systems is not None:
        more["others"] = tuple(name for name in arguments.systems if name != "sparrow")
        more |= {} if "sparrow" in arguments.systems else {"arms": ()}
    if arguments.tree:
        more["trees"] = tuple(map(str, arguments.tree))
        more["arms"] = tuple(replace(arm, trees=()) for arm in more.get("arms", table.arms))
    if arguments.lengths or arguments.temperature is not None:
        temperatures = table.temperatures if arguments.temperature is None else arguments.temperature
        more["points"] = grid(arguments.lengths or table.lengths, *temperatures)
    return replace(table, **more)


def check(tables: list[Table], arguments: argparse.Namespace) -> None:
    """What can be known to fail before anything is loaded."""
    if pathlib.Path(arguments.out).is_file():
        raise ValueError(f"--out must be a folder, {arguments.out} is a file")
    if arguments.timed == 0 and any(table.name == "stages" for table in tables):
        raise ValueError("table stages is of times: --timed must be at least 1, got 0")
    given = [name for name in OF_SYSTEMS if getattr(arguments, name) not in (None, [])]
    if given and all(table.visual for table in tables):
        name = tables[0].name
        raise ValueError(f"table {name} is of the target alone: it takes no --{given[0].replace('_', '-')}")
    for table in tables:
        for arm in table.arms:
            try:
                drafter_folder(arm.drafter)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"table {table.name}, {arm.label}: {error}") from None


def drafter_of(arm: Arm, model: Any) -> Any:
    """The arm's drafter, bound to the model."""
    return load_drafter(str(drafter_folder(arm.drafter)), model, **arm.overrides)


def plan_of(table: Table, compared: list[System], arguments: argparse.Namespace) -> Plan:
    """The table's counts, where the options name no others; of fewer clips fewer are live and timed."""
    clips = arguments.clips or table.clips
    live = arguments.live or min(table.live, clips)
    others = arguments.live_others or (table.live_others and max(live, min(table.live_others, clips)))
    return Plan(
        table=table.name,
        systems=tuple(compared),
        points=table.points,
        split=arguments.split,
        clips=clips,
        live=live,
        live_others=others,
        timed=min(table.timed, live) if arguments.timed is None else arguments.timed,
        runs=arguments.runs or table.runs,
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


def _named(text: str) -> tuple[str, str]:
    """("name", "folder") of name=folder; a folder alone is called by its own name."""
    name, equals, folder = text.partition("=")
    return (name, folder) if equals else (pathlib.Path(text).resolve().name, text)


def progress() -> Progress:
    """A bar on stderr."""
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err)


def show(path: pathlib.Path) -> int:
    """Prints the table of a JSON, or of every one in a folder; writes Markdown and pictures beside it."""
    files = [path] if path.is_file() else [f for f in (path / f"{name}.json" for name in TABLES) if f.is_file()]
    if not files:
        raise FileNotFoundError(f"--render: neither a file nor a folder with a table's JSON: {path}")
    for file in files:
        text = render(read_json(file), file.parent)
        write_text(file.with_suffix(".md"), text)
        print(text)
        err.print(f"[dim]table and pictures beside {file}[/dim]")
    return 0
