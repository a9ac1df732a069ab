"""The evaluation: every system at every visual length and temperature, one JSON, which a killed run goes on with."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.storage import WEIGHTS_FILE
from sparrow.evaluation import systems as one
from sparrow.evaluation.cells import LEVEL, RESAMPLES, SEED, Runs, cell
from sparrow.evaluation.questions import Question, question, sampling
from sparrow.evaluation.systems import FASTEST, Run, System
from sparrow.evaluation.tables import Plan
from sparrow.evaluation.tape import Key, Tapes, model_hash, replay
from sparrow.evaluation.trees import CANDIDATES, CLIPS, TIMED, choose
from sparrow.files import read_json, write_json
from sparrow.miniature.shipped import drafter_folder, training_record
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig

Progress = Callable[[str, int], None]  # what is done now, and how many runs and replays ended since the last call


@dataclass
class Known:
    """What one process need not find twice: replays by tape, drafter and tree; chosen trees by drafter and length."""

    replays: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    choices: dict[tuple[str, int], list[dict[str, Any]]] = field(default_factory=dict)


class Evaluation:
    """Runs a plan for one target.

    Args:
        model, tokenizer, settings: the target, from its folder.
        drafters: system name -> drafter, bound to the model.
        tapes: folder in which recorded runs are kept; they serve every later evaluation of the same target.
        known: of an earlier evaluation of the same target, split, seed and length of output in this process.
    """

    def __init__(
        self, plan: Plan, model: Any, tokenizer: Any, settings: Any, drafters: dict[str, SparrowDrafter],
        tapes: pathlib.Path, progress: Progress = lambda text, runs: None, known: Known | None = None,
    ):  # fmt: skip
        self.plan, self.model, self.tokenizer, self.settings, self.drafters = plan, model, tokenizer, settings, drafters
        self.tapes = Tapes(tapes, model, plan.seed, plan.max_new_tokens)
        self.progress, self.known = progress, known or Known()
        self.hashes = {s.name: file_hash(s.drafter) for s in plan.systems if s.drafter is not None}

    def settings_record(self) -> dict[str, Any]:
        """Everything a cell depends on."""
        return json.loads(json.dumps({
            **asdict(self.plan), "target": model_hash(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": SEED},
            "drafters": self.hashes,
            "tree_choice": {"candidates": CANDIDATES, "clips": CLIPS, "timed": TIMED, "split": "dev"},
        }))  # fmt: skip

    def write(self, file: pathlib.Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Measures what the file does not hold yet; it is written after every (length, temperature).

        Raises:
            ValueError: the file holds an evaluation with other settings; the message names the first that differs.
        """
        result = self._start(file, provenance)
        done = points_of(result)
        for length, temperature in self.plan.points:
            if (length, temperature) not in done:
                result["cells"] += self.cells(length, temperature)
                write_json(file, result, indent=1)
            else:
                self.progress(f"{length} visual tokens, T={temperature:g}: done before", 0)
        return result

    def _start(self, file: pathlib.Path, provenance: dict[str, Any]) -> dict[str, Any]:
        arms = dict.fromkeys(s.drafter for s in self.plan.systems if s.drafter is not None)
        training = {name: training_record(name) for name in arms}
        result = started(file, self.settings_record(), provenance, {"cells": []})
        systems = {s.name: s for s in self.plan.systems}
        for made in result["cells"]:
            if "tree_choice" in made:  # a tree is chosen once
                self.known.choices[self._identity(systems[made["system"]]), made["length"]] = made["tree_choice"]
        return result | {"training": training}

    def cells(self, length: int, temperature: float) -> list[dict[str, Any]]:
        """One cell per system."""
        plan = self.plan
        choices = {s.name: self._choose(s, length) for s in plan.systems if s.tree == FASTEST}
        best = {name: rows[0]["tree"] for name, rows in choices.items()}
        now = [replace(s, tree=best.get(s.name, s.tree)) for s in plan.run_at(temperature)]
        runs: Runs = {s.name: [] for s in now}
        replayed: dict[str, list[list[int]]] = {s.name: [] for s in now if s.kind == "sparrow"}
        for number in range(plan.clips):
            text = f"{length} visual tokens, T={temperature:g}, clip {number + 1} of {plan.clips}"
            self._clip(Key(plan.split, length, number, temperature), now, runs, replayed, text)
        shown = {s.name for s in plan.all_systems}
        made = [cell(plan, s, length, temperature, runs, replayed.get(s.name)) for s in now if s.name in shown]
        return [{**c, "tree_choice": choices[c["system"]]} if c["system"] in choices else c for c in made]

    def _clip(self, key: Key, now: list[System], runs: Runs, replayed: dict[str, list[list[int]]], text: str) -> None:
        """One clip: everything that can be is replayed, the rest is run; text: for the progress."""
        self.progress(text, 0)
        asked = functools.cache(lambda: self.ask(key.length, key.number, key.split))
        for system in now:
            if system.kind == "sparrow":
                replayed[system.name].append(self._replay(key, system, asked))
                self.progress(text, 1)
        live = [s for s in now if key.number < self.plan.live_clips(s)]
        if live:
            self._live(live, asked(), key.temperature, runs, text)

    def ask(self, length: int, number: int, split: str) -> Question:
        """The question, its inputs where the model is."""
        asked = question(self.settings, self.tokenizer, length, number, split=split)
        return replace(asked, inputs=Target(self.model).inputs(asked.inputs))

    def _replay(self, key: Key, system: System, asked: Callable[[], Question]) -> list[int]:
        """Tokens per round."""
        drafter = self.drafters[system.name]
        at = (self.tapes.name(key, drafter.config), self._identity(system), str(system.tree))
        if at not in self.known.replays:
            tape = self.tapes.load(key, drafter.config, lambda: asked().inputs)
            self.known.replays[at] = replay(tape, drafter, TreeConfig.parse(str(system.tree)))
        return self.known.replays[at]

    def _choose(self, system: System, length: int) -> list[dict[str, Any]]:
        """Trees for greedy decoding at this length, the fastest first; measured on dev clips, once."""
        at = self._identity(system), length
        if at not in self.known.choices:
            text = f"{length} visual tokens, choosing a tree for {system.arm}"
            self.progress(text, 0)
            drafter, options = self.drafters[system.name], sampling(0.0, self.plan.max_new_tokens)
            asked = [self.ask(length, number, "dev") for number in range(CLIPS)]
            load = lambda a: self.tapes.load(Key("dev", length, a.number, 0.0), drafter.config, lambda: a.inputs)  # noqa: E731
            tapes = [load(a) for a in asked]
            self.known.choices[at] = choose(
                self.model, drafter, system, asked, tapes, options, self.plan.seed, self.plan.clock,
                lambda tree: self.progress(f"{text}: {tree}", 0),
            )  # fmt: skip
        return self.known.choices[at]

    def _identity(self, system: System) -> str:
        """Of a system's drafter: its weights and its config."""
        return json.dumps([self.hashes[system.name], asdict(self.drafters[system.name].config)], sort_keys=True)

    def _live(self, systems: list[System], asked: Question, temperature: float, runs: Runs, text: str) -> None:
        """The systems on one clip, timed ones several times; who goes first changes from run to run."""
        plan, number = self.plan, asked.number
        options, seed = sampling(temperature, plan.max_new_tokens), plan.seed + number

        def once(system: System) -> Run:
            drafter = self.drafters.get(system.name)
            run = one.run(system, self.model, drafter, asked.inputs, options, seed, plan.clock)
            self.progress(text, 1)
            return run

        if number == 0 and plan.timed:
            for system in systems:  # not counted: first calls are slow
                once(system)
        for system in systems:
            runs[system.name].append([])
        for turn in range(plan.runs if number < plan.timed else 1):
            at = (number + turn) % len(systems)
            for system in systems[at:] + systems[:at]:
                runs[system.name][-1].append(once(system))


def file_hash(folder: str) -> str:
    """16 hex digits of a drafter's weights."""
    return hashlib.sha256((drafter_folder(folder) / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


def measured(file: pathlib.Path) -> set[tuple[int, float]]:
    """The (visual length, temperature) pairs that a result file holds; none where there is no file."""
    return points_of(read_json(file)) if file.exists() else set()


def points_of(result: dict[str, Any]) -> set[tuple[int, float]]:
    """The (visual length, temperature) pairs of a result's cells."""
    return {(made["length"], made["temperature"]) for made in result["cells"]}


def started(
    file: pathlib.Path, settings: dict[str, Any], provenance: dict[str, Any], empty: dict[str, Any]
) -> dict[str, Any]:
    """What the file holds, or an empty result with these settings.

    Raises:
        ValueError: the file holds other settings; the message names the first that differs.
    """
    if not file.exists():
        return {"provenance": [provenance], "settings": settings, **empty}
    try:
        result = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}. Remove it: the table is measured again") from None
    for name, value in settings.items():
        if (old := result.get("settings", {}).get(name)) != value:
            raise ValueError(f"{file} holds an evaluation with {name}={old!r}, this one has {value!r}")
    result["provenance"].append(provenance)
    return result
