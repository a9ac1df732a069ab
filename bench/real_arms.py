"""What training options bring on real language: drafters of SmolLM2, trained alike but for one thing.

    python -m bench.real_arms --run runs/arms --save bench/results/smollm2/arms.json
    python -m bench.real_arms --run runs/arms --only "2 passes,5 passes"    # a part of it
    python -m bench.real_arms --table bench/results/smollm2/arms.json

Every arm takes the same steps over the same answers; one whose steps cost much more or less time is trained again with
the steps that fit into the first arm's seconds (of the CPU), but for those that need other states of the target, which
are computed as they are read: that takes longer than the steps, and is not counted. The arms "n steps" are the first
one's curve over training tokens. All are measured on tapes of the target, float32: tokens per round, greedy and
sampled (T = 1), on instructions of the dev split, by which one would choose, on those of the test split, whose topics
no other prompt has, and on clips of the test split.
Training and measuring go on where they were stopped.
"""

import pathlib
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from bench.measured import program
from bench.real_prompts import CLIP_TOKENS, prompt_file
from sparrow.cli.loading import load_drafter, load_model, load_target, load_tokenizer
from sparrow.cli.train import clips_of
from sparrow.drafters.network import SparrowDrafter
from sparrow.evaluation.cells import interval, quotient
from sparrow.evaluation.questions import question, sampling
from sparrow.evaluation.tape import Tape, cached, record, replay
from sparrow.files import read_json, read_json_lines, write_json
from sparrow.progress import console, track
from sparrow.smollm2.fetch import fetch
from sparrow.smollm2.prompts import prompts as instructions
from sparrow.targets.adapter import Target
from sparrow.training import trainer
from sparrow.training.config import load_config
from sparrow.training.recipe import DrafterTraining
from sparrow.training.stages import train
from sparrow.tree import TreeConfig
from sparrow.video import load_settings, prepare

FIRST = "shipped recipe"
STEPS, NEW = 100, 48
TRAINING = (1120, 80)  # prompts: instructions, clips
MEASURED = {"dev": 30, "text": 60, "clip": 12}
TREE = "8-3-4"
LAYERS = (30, 2, 15, 27, 29)  # of SmolLM2's 30, that any arm reads
BASE = ("data.num_frames=8", "data.validation=0", "answers.max_new_tokens=64", "answers.temperatures=[0.0,1.0]",
        "answers.batch=96", "dtype=bfloat16", "drafter.draft_vocab=8192", "drafter.tree=8-3-4",
        "optimisation.warmup=20", "optimisation.batch_rows=900")  # fmt: skip
LIVE = "states.cache=false"  # what only one arm reads of the target is not kept
PAPER = ("recipe.mtp_depth=1", "recipe.mtp_attention=paper", "optimisation.optimiser=adamw")
ARMS: dict[str, tuple[str, ...]] = {
    FIRST: (),
    "another seed": ("optimisation.seed=1",),
    "the paper's recipe": (*PAPER, "recipe.visual=true", LIVE),
    "the same without the video": PAPER,
    "with the video (IVSB)": ("recipe.visual=true", LIVE),
    "AdamW": ("optimisation.optimiser=adamw",),
    "1 pass": ("recipe.mtp_depth=1",),
    "2 passes": ("recipe.mtp_depth=2",),
    "5 passes": ("recipe.mtp_depth=5",),
    "state of the last layer but one": ("drafter.hidden_layer=-2", LIVE),
    "states of four layers": ("drafter.fused_layers=[2,15,27]", "recipe.feature=0", LIVE),
    "two layers": ("drafter.num_layers=2",),
    "draft vocabulary 4096": ("drafter.draft_vocab=4096",),
    "draft vocabulary 16384": ("drafter.draft_vocab=16384",),
    "acceptance loss": ("recipe.acceptance=1.0",),
    "greedy answers only": ("answers.temperatures=[0.0]",),
    **{f"{n} steps": (f"optimisation.steps={n}",) for n in (25, 50, 200, 400)},
}
EQUAL = ", equal seconds"
CPU_TIME = SimpleNamespace(perf_counter=time.process_time)  # of a step, in the log
NEAR = 0.2  # an arm whose steps take the first one's time, but for this share, is not trained again


def settings_of(name: str, run: pathlib.Path, target: pathlib.Path) -> DrafterTraining:
    """Of an arm; for "NAME, equal seconds" with the steps that NAME would take in the first arm's time."""
    arm = name.removesuffix(EQUAL)
    steps = equal_steps(run, arm) if name.endswith(EQUAL) else STEPS
    places = (f"target={target}", f"run={folder_of(run, name)}", f"data.clips={prompt_file(run, *TRAINING)}",
              f"answers.folder={run / 'answers'}", f"states.folder={run / 'states'}")  # fmt: skip
    return load_config(DrafterTraining, "sparrow", (*places, *BASE, f"optimisation.steps={steps}", *ARMS[arm]))


def folder_of(run: pathlib.Path, name: str) -> pathlib.Path:
    return run / name.replace(" ", "_").replace(",", "")


def logged(run: pathlib.Path, name: str) -> list[dict]:
    return [row for _, row in read_json_lines(folder_of(run, name) / "log.jsonl")]


def seconds_of(run: pathlib.Path, name: str) -> float:
    """Median seconds of a step."""
    return float(np.median([row["seconds"] for row in logged(run, name) if "seconds" in row]))


def equal_steps(run: pathlib.Path, name: str) -> int:
    """Steps of the arm in the seconds of the first one's."""
    return round(STEPS * seconds_of(run, FIRST) / seconds_of(run, name))


def asked(kind: str, number: int, settings, tokenizer):
    """The inputs of a test prompt."""
    if kind == "clip":
        return question(settings, tokenizer, CLIP_TOKENS, number, split="test").inputs
    split = "dev" if kind == "dev" else "test"
    return prepare(settings, tokenizer, instructions(split, number + 1)[number], [])


def tapes(run: pathlib.Path, target: pathlib.Path) -> dict[tuple[str, int, float], Tape]:
    """The prompts' tapes by kind, number and temperature; recorded once, with the states of LAYERS."""
    model, tokenizer = load_target(target, "float32", torch.device("cpu"), False)
    settings, found = load_settings(target), {}
    numbers = [(kind, i) for kind, count in MEASURED.items() for i in range(count)]
    for kind, number in track(numbers, "the target's tapes", "prompts"):
        for t in (0.0, 1.0):

            def make(kind=kind, number=number, t=t):
                inputs = Target(model).inputs(asked(kind, number, settings, tokenizer))
                return vars(record(model, inputs, LAYERS, sampling(t, NEW), seed=number))

            found[kind, number, t] = Tape(**cached(run / "tapes" / f"{kind}-{number}-T{t:g}.safetensors", make))
    return found


def seen_by(tape: Tape, layers: tuple[int, ...]) -> Tape:
    """The tape with the states of these layers only."""
    columns = [LAYERS.index(layer) for layer in layers]

    def part(states):
        return states.unflatten(1, (len(LAYERS), -1))[:, columns].flatten(1)

    more = {"hidden": part(tape.hidden), "prompt_hidden": part(tape.prompt_hidden)}
    return Tape(**vars(tape) | more)


def replayed(drafter: SparrowDrafter, found: dict[tuple[str, int, float], Tape]) -> list[dict]:
    """One row per kind and temperature: tokens and rounds of each prompt."""
    rows = []
    shown = {key: seen_by(tape, drafter.config.state_layers) for key, tape in found.items()}
    for kind, t in [(kind, t) for kind in MEASURED for t in (0.0, 1.0)]:
        own = [tape for key, tape in shown.items() if (key[0], key[2]) == (kind, t) and len(tape.tokens) > 1]
        emitted = [replay(tape, drafter, TreeConfig.parse(TREE)) for tape in own]
        counts = {"tokens": [sum(e) for e in emitted], "rounds": [len(e) for e in emitted]}
        rows.append({"kind": kind, "temperature": t, **counts})
    return rows


def measure(run: str, only: str) -> dict[str, object]:
    """Trains and measures the arms, and those of equal seconds; what a row of the result is: see `row`."""
    place, target = pathlib.Path(run), fetch()
    names = list(dict.fromkeys([FIRST, *(name for name in only.split(",") if name)])) if only else list(ARMS)
    if unknown := set(names) - set(ARMS):
        raise SystemExit(f"--only must name arms of {', '.join(ARMS)}, got {', '.join(unknown)}")
    tokenizer, settings = load_tokenizer(target, False), {}
    teacher = Target(load_model(target, "bfloat16", torch.device("cpu"), False))
    for name in [arm + suffix for suffix in ("", EQUAL) for arm in names]:
        if not name.endswith(EQUAL) or costs_other_time(place, name.removesuffix(EQUAL)):
            console.print(f"arm: {name}", markup=False)
            settings[name] = config = settings_of(name, place, target)
            with mock.patch.object(trainer, "time", CPU_TIME):
                train(teacher, clips_of(config, target, tokenizer), config)
    figures = measured(place, target, [pathlib.Path(config.run) for config in settings.values()])
    arms = [row(place, name, settings[name], own) for name, own in zip(settings, figures, strict=True)]
    return {"new_tokens": NEW, "tree": TREE, "arms": arms}


def measured(run: pathlib.Path, target: pathlib.Path, arms: list[pathlib.Path]) -> list[list[dict]]:
    """Each arm's figures, kept as <arm>/measured.json."""
    model = load_model(target, "float32", torch.device("cpu"), False)
    found: dict[tuple[str, int, float], Tape] = {}
    for arm in arms:
        if not (arm / "measured.json").exists():
            found = found or tapes(run, target)
            console.print(f"measuring {arm}", markup=False)
            figures = replayed(load_drafter(str(arm / trainer.DRAFTER), model), found)
            write_json(arm / "measured.json", {"figures": figures})
    return [read_json(arm / "measured.json")["figures"] for arm in arms]


def costs_other_time(run: pathlib.Path, name: str) -> bool:
    """Whether the arm, of as many steps as the first one, took another time, and reads states that are kept."""
    if name == FIRST or name.endswith(" steps") or LIVE in ARMS[name]:
        return False
    return abs(seconds_of(run, name) / seconds_of(run, FIRST) - 1) > NEAR


def row(run: pathlib.Path, name: str, config: DrafterTraining, figures: list[dict]) -> dict[str, object]:
    """An arm: its overrides, steps, median seconds of a step, rows with a loss in all, and its figures."""
    steps = config.optimisation.steps
    counted = [entry["rows"] for entry in logged(run, name) if "rows" in entry]
    overrides = [o for o in ARMS[name.removesuffix(EQUAL)] if o != LIVE]
    return {
        "arm": name, "overrides": overrides, "steps": steps, "step_seconds": seconds_of(run, name),
        "rows": round(steps * float(np.mean(counted))), "figures": figures,
    }  # fmt: skip


def tau(figures: dict, first: dict | None = None) -> str:
    """Tokens per round with its interval over prompts; with `first`, its ratio to that arm's on the same prompts."""
    own = list(zip(figures["tokens"], figures["rounds"], strict=True))
    if first is None:
        value = interval(own, quotient)
    else:
        both = [(*a, *b) for a, b in zip(own, zip(first["tokens"], first["rounds"], strict=True), strict=True)]
        value = interval(both, lambda s: s[..., 0] / s[..., 1] / (s[..., 2] / s[..., 3]))
    digits = 2 if first is None else 3
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def table(result: dict) -> str:
    """Markdown: tau by prompts and temperature, and over the first arm's."""
    kinds = dict.fromkeys(figures["kind"] for figures in result["arms"][0]["figures"])
    columns = [(kind, t) for kind in kinds for t in (0.0, 1.0)]
    heads = [f"{kind}, T = {t:g}" for kind, t in columns] + ["text, T = 0, over the first", "T = 1"]
    lines = ["| arm | steps | rows | s a step | " + " | ".join(heads) + " |", "|---|---|---|---|" + "---|" * len(heads)]

    def at(arm: dict, key: tuple) -> dict:
        return next(f for f in arm["figures"] if (f["kind"], f["temperature"]) == key)

    first = next((arm for arm in result["arms"] if arm["arm"] == FIRST), None)
    for arm in result["arms"]:
        cells = [tau(at(arm, key)) for key in columns]
        ratios = ["" if first in (None, arm) else tau(at(arm, ("text", t)), at(first, ("text", t))) for t in (0.0, 1.0)]
        about = f"{arm['arm']} | {arm['steps']} | {arm['rows']} | {arm['step_seconds']:.2f}"
        lines.append(f"| {about} | " + " | ".join(cells + ratios) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {
        "run": {"default": "runs/arms", "help": "folder of answers, states, tapes and drafters"},
        "only": {"default": "", "help": "arms beside the first one, separated by commas"},
    }
    program("bench.real_arms", __doc__, options, measure, table)
