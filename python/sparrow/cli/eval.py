"""`sparrow eval`: the tables of the comparison on held-out synthetic clips; JSON with intervals, Markdown, pictures."""

import importlib.util
import pathlib
import shlex
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparrow.cli import eval_clips, eval_engine, eval_visual, places
from sparrow.cli.arguments import Eval as EvalArguments
from sparrow.cli.loading import load_drafter, load_target, pick_device, quiet
from sparrow.cli.tables import print_markdown
from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.storage import CONFIG_FILE
from sparrow.evaluation.cells import faults
from sparrow.evaluation.evaluate import Evaluation, Known, measured
from sparrow.evaluation.own import TABLE as CLIPS
from sparrow.evaluation.questions import form_of
from sparrow.evaluation.report.render import render
from sparrow.evaluation.tables import TABLES, Arm, Plan, Table, grid, systems, table_of
from sparrow.files import lock, read_json, write_text
from sparrow.miniature.shipped import SHIPPED, drafter_folder, pair
from sparrow.progress import Progress, console
from sparrow.provenance import provenance
from sparrow.video import PatchSettings, load_settings


@dataclass(frozen=True)
class Loaded:
    """The target, and what is known of it in this process."""

    settings: PatchSettings
    model: Any
    tokenizer: Any
    known: Known


OF_SYSTEMS = ("drafter", "tree", "systems", "temperature", "live", "live_others", "timed", "runs")


def run(arguments: EvalArguments) -> int:
    """Exit code 1 where a live output of ours is not the reference's, or not what was replayed."""
    if arguments.engine:
        return eval_engine.run(arguments, folder_of_target(arguments), target)
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("sparrow eval draws with matplotlib: pip install 'sparrow-decoding[train]'")
    if arguments.render:
        return show(pathlib.Path(arguments.render))
    if isinstance(arguments.clips, str):
        eval_clips.check(arguments)
    arguments = with_drafters(arguments)
    if isinstance(arguments.clips, str):
        return own_clips(arguments)
    names = arguments.table or (list(TABLES) if arguments.quick else ["main"])
    tables = [changed(table_of(name, arguments.quick), arguments) for name in dict.fromkeys(names)]
    check(tables, arguments)
    plans = [None if table.visual else plan_of(table, arguments) for table in tables]
    quiet()
    torch.set_num_threads(1)
    loaded = Loaded(*target(arguments), Known())
    wrong = [fault for of in zip(tables, plans, strict=True) for fault in measure(*of, loaded, arguments)]
    for fault in wrong:
        console.print(fault, style="red", markup=False)
    return 1 if wrong else 0


def own_clips(arguments: EvalArguments) -> int:
    """--clips FILE."""
    check_out(arguments)
    made = provenance("sparrow " + shlex.join(sys.argv[1:]))
    drafters = [_named(text) for text in arguments.drafter]
    if not drafters and arguments.target is None:
        drafters = [("shipped", "shipped")]
    file, wrong = eval_clips.measure(arguments, folder_of_target(arguments), drafters, made)
    show(file)
    return 1 if wrong else 0


def measure(table: Table, plan: Plan | None, loaded: Loaded, arguments: EvalArguments) -> list[str]:
    """Measures one table into --out and shows it. Returns what was not as it must be."""
    folder, made = pathlib.Path(arguments.out), provenance("sparrow " + shlex.join(sys.argv[1:]))
    file = folder / f"{table.name}.json"
    with lock(file):
        if plan is None:
            target_only = (loaded.settings, loaded.model, loaded.tokenizer)
            eval_visual.measure(table, file, made, target_only, arguments)
        else:
            measure_systems(table, plan, file, made, loaded, arguments)
    show(file)
    return faults(read_json(file))


def measure_systems(
    table: Table, plan: Plan, file: pathlib.Path, made: dict[str, Any], loaded: Loaded, arguments: EvalArguments
) -> None:
    """Measures a table of systems into the file; made: provenance."""
    tapes = pathlib.Path(arguments.tapes) if arguments.tapes else file.parent / "tapes"
    drafters = {arm.label: drafter_of(arm, loaded.model) for arm in table.arms}
    bound = {s.name: drafters[s.arm] for s in plan.systems if s.kind == "sparrow"}
    left = set(plan.points) - measured(file)
    runs = sum(plan.operations(temperature, clip) for _, temperature in left for clip in range(plan.clips))
    with Progress(table.name, runs, "runs") as progress:

        def tell(text: str, runs: int) -> None:
            progress.update(text=f"{table.name}: {text}")
            progress.advance(runs)

        evaluation = Evaluation(
            plan, loaded.model, loaded.tokenizer, loaded.settings, bound, tapes, tell, loaded.known
        )  # fmt: skip
        evaluation.write(file, made)


def changed(table: Table, arguments: EvalArguments) -> Table:
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


def check(tables: list[Table], arguments: EvalArguments) -> None:
    """What can be known to fail before anything is loaded."""
    check_out(arguments)
    if arguments.timed == 0 and any(table.name == "stages" for table in tables):
        raise ValueError("table stages is of times: --timed must be at least 1, got 0")
    given = [name for name in OF_SYSTEMS if getattr(arguments, name) not in (None, ())]
    if given and all(table.visual for table in tables):
        name = tables[0].name
        raise ValueError(f"table {name} is of the target alone: it takes no --{given[0].replace('_', '-')}")
    for table in tables:
        if table.name == "layer_cut" and len(table.lengths) > 1:
            raise ValueError(f"table layer_cut takes one of --lengths, got {len(table.lengths)}")
        if table.visual and clips_of(arguments, table) < 2:
            raise ValueError(f"--clips must be at least 2 for table {table.name}: videos are exchanged, got 1")
        for length in table.lengths:
            form_of(length, 0)  # raises
        for arm in table.arms:
            try:
                drafter_folder(arm.drafter)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"table {table.name}, {arm.label}: {error}") from None


def clips_of(arguments: EvalArguments, table: Table) -> int:
    """Clips of the synthetic world."""
    return arguments.clips if isinstance(arguments.clips, int) else table.clips


def check_out(arguments: EvalArguments) -> None:
    """Raises ValueError where --out is a file."""
    if pathlib.Path(arguments.out).is_file():
        raise ValueError(f"--out must be a folder, {arguments.out} is a file")


def drafter_of(arm: Arm, model: Any) -> Any:
    """The arm's drafter, bound to the model."""
    return load_drafter(str(drafter_folder(arm.drafter)), model, **arm.overrides)


def plan_of(table: Table, arguments: EvalArguments) -> Plan:
    """The table's systems and counts, where the options name no others; of fewer clips fewer are live and timed."""
    texts = {arm.label: ((drafter_folder(arm.drafter) / CONFIG_FILE).read_text(), arm.overrides) for arm in table.arms}
    compared = systems(table, {arm: DrafterConfig.from_json(text, **more).tree for arm, (text, more) in texts.items()})
    clips = clips_of(arguments, table)
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


def target(arguments: EvalArguments) -> tuple[PatchSettings, Any, Any]:
    """(settings, model, tokenizer) of --target, or of the shipped pair."""
    folder = folder_of_target(arguments)
    model, tokenizer = load_target(folder, arguments.dtype, pick_device(arguments.device), False)
    settings = load_settings(folder)
    if not isinstance(settings, PatchSettings):
        raise ValueError(f"--target: the synthetic world's lengths need a Qwen target, got a {settings.family}")
    return settings, model, tokenizer


def folder_of_target(arguments: EvalArguments) -> pathlib.Path:
    """--target's, or the shipped target's."""
    return places.target_folder(arguments.target) if arguments.target else pair(SHIPPED)[0]


def with_drafters(arguments: EvalArguments) -> EvalArguments:
    """The arguments with a folder for each --drafter: hub ids are fetched, public checkpoints imported."""
    named = []
    for name, folder in map(_named, arguments.drafter):
        try:
            is_arm = drafter_folder(folder) != pathlib.Path(folder)
        except FileNotFoundError:
            is_arm = not places.may_be_hub_id(folder)  # `check` says what there is
        place = folder if is_arm else places.drafter_folder(folder, folder_of_target(arguments))
        named.append(f"{name}={place}")
    return replace(arguments, drafter=tuple(named))


def _named(text: str) -> tuple[str, str]:
    """("name", "folder") of name=folder; a folder alone is called by its own name."""
    name, equals, folder = text.partition("=")
    return (name, folder) if equals else (pathlib.Path(text).resolve().name, text)


def show(path: pathlib.Path) -> int:
    """Prints the table of a JSON, or of every one in a folder; writes it as Markdown and pictures beside it."""
    files = (
        [path] if path.is_file() else [f for f in (path / f"{name}.json" for name in (*TABLES, CLIPS)) if f.is_file()]
    )
    if not files:
        raise FileNotFoundError(f"--render: neither a file nor a folder with a table's JSON: {path}")
    for file in files:
        text = render(read_json(file), file.parent)
        write_text(file.with_suffix(".md"), text)
        print_markdown(text)
        console.print(f"with intervals in {file.with_suffix('.md')}, pictures beside it", style="dim", markup=False)
    return 0
