"""`sparrow eval --clips FILE.jsonl`: the systems on prompts of one's own, of every family."""

import hashlib
import pathlib
from typing import Any

import torch

from sparrow.cli.arguments import Eval as EvalArguments
from sparrow.cli.loading import load_drafter, load_model, load_tokenizer, pick_device, quiet
from sparrow.drafters.storage import CONFIG_FILE
from sparrow.evaluation import own
from sparrow.evaluation.systems import System
from sparrow.evaluation.tables import OTHERS, OWN
from sparrow.files import lock, read_json
from sparrow.miniature.shipped import drafter_folder
from sparrow.progress import Progress, console
from sparrow.training.clips import FileClips
from sparrow.video import load_settings

OF_THE_WORLD = ("table", "quick", "lengths", "live", "live_others", "timed", "tapes")  # what the synthetic clips have


def check(arguments: EvalArguments) -> None:
    """Raises ValueError for options that prompts of one's own do not take."""
    given = [name for name in OF_THE_WORLD if getattr(arguments, name) not in (None, (), False)]
    if given or arguments.split != "test":
        name = (given or ["split"])[0].replace("_", "-")
        raise ValueError(f"--clips FILE takes no --{name}: that is of the synthetic world's clips")


def measure(
    arguments: EvalArguments, target: pathlib.Path, drafters: list[tuple[str, str]], made: dict[str, Any]
) -> tuple[pathlib.Path, list[str]]:
    """Measures the file's prompts into --out. Returns the JSON, and what was not as it must be.

    Args:
        target: its folder.
        drafters: (name, folder or arm).
        made: provenance.
    """
    quiet()
    torch.set_num_threads(1)
    places = {name: drafter_folder(folder) for name, folder in drafters}
    source = pathlib.Path(str(arguments.clips))
    clips = FileClips(source, load_settings(target), load_tokenizer(target, False), arguments.num_frames, arguments.fps)
    clips.check()
    plan = own.Plan(
        systems=tuple(_systems(arguments, places)),
        temperatures=arguments.temperature or (0.0,),
        runs=arguments.runs or 1,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        clock=arguments.clock,
    )
    model = load_model(target, arguments.dtype, pick_device(arguments.device), False)
    loaded = {name: load_drafter(str(place), model) for name, place in places.items()}
    bound = {s.name: loaded[s.arm] for s in plan.systems if s.kind == "sparrow"}
    weights = {name: own.hash_of(place) for name, place in places.items()}
    about = {"clips": source.name, "lines": hashlib.sha256(source.read_bytes()).hexdigest()[:16],
             "num_frames": arguments.num_frames, "fps": arguments.fps, "drafters": weights}  # fmt: skip
    file = pathlib.Path(arguments.out) / f"{own.TABLE}.json"
    with lock(file), Progress("evaluating", plan.operations(len(clips)), "runs") as progress:

        def tell(text: str, runs: int) -> None:
            progress.update(text=text)
            progress.advance(runs)

        own.write(plan, model, bound, clips, about, file, made, tell)
    wrong = own.faults(read_json(file))
    for fault in wrong:
        console.print(fault, style="red", markup=False)
    return file, wrong


def _systems(arguments: EvalArguments, places: dict[str, pathlib.Path]) -> list[System]:
    """Every drafter with every tree, by default its own, then the others that were asked for."""
    asked, made = arguments.systems or (), []
    for name, place in places.items() if not asked or "sparrow" in asked else ():
        for tree in dict.fromkeys(map(str, arguments.tree or (OWN,))):
            shape = str(read_json(place / CONFIG_FILE)["tree"]) if tree == OWN else tree
            made.append(System(f"{name} {shape}", "sparrow", name, shape, arm=name))
    return made + [OTHERS[name] for name in asked if name != "sparrow"]
