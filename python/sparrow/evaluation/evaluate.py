"""The evaluation: every system at every visual length and temperature, one JSON, which a killed run goes on with."""

import hashlib
import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparrow.drafter import WEIGHTS_FILE, SparrowDrafter
from sparrow.drafter_config import DrafterConfig
from sparrow.evaluation import systems as one
from sparrow.evaluation.questions import Question, question, sampling, to_model
from sparrow.evaluation.statistics import LEVEL, RESAMPLES, SEED, acceptance_by_depth, interval, quotient, speed_ratio
from sparrow.evaluation.systems import OURS, PLAIN, TRANSFORMERS, Run, System
from sparrow.evaluation.tape import Tape, cached, model_hash, record, replay
from sparrow.evaluation.trees import AUTO, CLIPS, choose
from sparrow.miniature import drafter_folder
from sparrow.tree import TreeConfig

BASELINES = (TRANSFORMERS, PLAIN)
Progress = Callable[[str, int], None]  # what is done now, and by how many clips that moves on


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        systems: beside the two baselines, which are always run.
        lengths: visual lengths; temperatures: 0 = greedy.
        split: "test", or "dev" for choosing.
        clips: numbers 0 .. clips - 1 of the split; tau is over all of them.
        live: the first so many are decoded live by every system: losslessness, and the replay checked.
        timed: the first so many of those are run `runs` times; a time is the median.
        seed: of the sampling noise; clip i draws with seed + i.
        max_new_tokens: per clip.
        clock: of the times, "wall" or "cpu".
    """

    systems: tuple[System, ...]
    lengths: tuple[int, ...] = (64, 256, 1024)
    temperatures: tuple[float, ...] = (0.0, 1.0)
    split: str = "test"
    clips: int = 100
    live: int = 100
    timed: int = 20
    runs: int = 3
    seed: int = 0
    max_new_tokens: int = 256
    clock: str = "wall"

    def __post_init__(self):
        for name in ("clips", "live", "timed", "runs", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.timed <= self.live <= self.clips:
            raise ValueError(f"timed <= live <= clips must hold, got {self.timed}, {self.live}, {self.clips}")
        if self.clock not in one.CLOCKS:
            raise ValueError(f"clock must be one of {', '.join(one.CLOCKS)}, got {self.clock!r}")
        names = [s.name for s in self.all_systems]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"systems need different names, got {sorted(twice)[0]!r} twice")

    @property
    def all_systems(self) -> tuple[System, ...]:
        return (*BASELINES, *self.systems)


class Evaluation:
    """Runs a plan for one target.

    Args:
        model, tokenizer, settings: the target, from its folder.
        drafters: system name -> drafter, bound to the model.
        tapes: folder in which recorded runs are kept; they serve every later evaluation of the same target.
    """

    def __init__(
        self, plan: Plan, model: Any, tokenizer: Any, settings: Any, drafters: dict[str, SparrowDrafter],
        tapes: pathlib.Path, progress: Progress = lambda text, clips: None,
    ):  # fmt: skip
        self.plan, self.model, self.tokenizer, self.settings, self.drafters = plan, model, tokenizer, settings, drafters
        self.target = model_hash(model)
        self.tapes, self.progress = tapes, progress
        self.now = list(plan.all_systems)
        self.choices: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def settings_record(self) -> dict[str, Any]:
        """Everything a cell depends on."""
        return json.loads(json.dumps({
            **asdict(self.plan), "target": self.target, "dtype": str(self.model.dtype).removeprefix("torch."),
            "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": SEED},
            "drafters": {s.name: file_hash(s.drafter) for s in self.plan.systems if s.drafter is not None},
        }))  # fmt: skip

    def write(self, file: pathlib.Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Measures what the file does not hold yet; it is written after every (length, temperature).

        Raises:
            ValueError: the file holds an evaluation with other settings; the message names the first that differs.
        """
        result = self._start(file, provenance)
        done = {(cell["length"], cell["temperature"]) for cell in result["cells"]}
        for length in self.plan.lengths:
            for temperature in self.plan.temperatures:
                if (length, temperature) not in done:
                    result["cells"] += self.cells(length, temperature)
                    save_json(file, result)
        return result

    def _start(self, file: pathlib.Path, provenance: dict[str, Any]) -> dict[str, Any]:
        settings = self.settings_record()
        if not file.exists():
            return {"provenance": [provenance], "settings": settings, "cells": []}
        result = json.loads(file.read_text())
        for name, value in settings.items():
            if (old := result["settings"].get(name)) != value:
                raise ValueError(f"{file} holds an evaluation with {name}={old!r}, this one has {value!r}")
        result["provenance"].append(provenance)
        return result

    def cells(self, length: int, temperature: float) -> list[dict[str, Any]]:
        """One cell per system."""
        plan, options = self.plan, sampling(temperature, self.plan.max_new_tokens)
        choices = {s.name: self._choose(s, length) for s in plan.systems if s.tree == AUTO}
        best = {name: rows[0]["tree"] for name, rows in choices.items()}
        self.now = [replace(s, tree=best.get(s.name, s.tree)) for s in plan.all_systems]
        runs: dict[str, list[list[Run]]] = {s.name: [] for s in plan.all_systems}
        replayed: dict[str, list[list[int]]] = {s.name: [] for s in plan.systems if s.kind == "sparrow"}
        for number in range(plan.clips):
            self.progress(f"{length} visual tokens, T={temperature:g}, clip {number + 1} of {plan.clips}", 1)
            asked = self.ask(length, number, plan.split)
            for system in self.now:
                if system.kind == "sparrow":
                    drafter, tree = self.drafters[system.name], TreeConfig.parse(str(system.tree))
                    tape = self.tape(asked, plan.split, temperature, drafter.config, options)
                    replayed[system.name].append(replay(tape, drafter, tree))
            if number < plan.live:
                self._live(asked, options, plan.runs if number < plan.timed else 1, runs)
        cells = [self._cell(s, length, temperature, runs, replayed.get(s.name)) for s in self.now]
        return [{**c, "tree_choice": choices[c["system"]]} if c["system"] in choices else c for c in cells]

    def ask(self, length: int, number: int, split: str) -> Question:
        """The question, its inputs where the model is."""
        asked = question(self.settings, self.tokenizer, length, number, split=split)
        return replace(asked, inputs=to_model(asked.inputs, self.model))

    def _choose(self, system: System, length: int) -> list[dict[str, Any]]:
        """Trees for greedy decoding at this length, the fastest first; measured on dev clips, once."""
        if (system.name, length) not in self.choices:
            self.progress(f"{length} visual tokens, choosing a tree for {system.name}", 0)
            drafter, options = self.drafters[system.name], sampling(0.0, self.plan.max_new_tokens)
            asked = [self.ask(length, number, "dev") for number in range(CLIPS)]
            tapes = [self.tape(a, "dev", 0.0, drafter.config, options) for a in asked]
            self.choices[system.name, length] = choose(
                self.model, drafter, str(system.drafter), asked, tapes, options, self.plan.seed, self.plan.clock
            )
        return self.choices[system.name, length]

    def tape(
        self, asked: Question, split: str, temperature: float, config: DrafterConfig, options: dict[str, Any]
    ) -> Tape:
        """The recorded run, from disk where it is; a drafter with this config can be replayed on it."""
        plan, layers = self.plan, config.state_layers
        visual = config.seen_layer
        name = f"{self.target}-{self.model.dtype}/{split}-{asked.length}-{asked.number}"
        seed, joined = plan.seed + asked.number, "-".join(map(str, layers))
        name += f"-T{temperature:g}-seed{seed}-{plan.max_new_tokens}-layer{joined}"
        name += "-text.safetensors" if visual is None else f"-visual{visual}.safetensors"
        make = lambda: record(self.model, asked.inputs, layers, options, seed, visual)  # noqa: E731
        return cached(self.tapes / name.replace("torch.", ""), make)

    def _live(self, asked: Question, options: dict, repeats: int, runs: dict[str, list[list[Run]]]) -> None:
        """Every system on one clip, `repeats` times; who goes first changes from run to run."""
        plan, order, seed = self.plan, self.now, self.plan.seed + asked.number
        drafters = self.drafters

        def once(system: System) -> Run:
            return one.run(system, self.model, drafters.get(system.name), asked.inputs, options, seed, plan.clock)

        if asked.number == 0:
            for system in order:  # not counted: first calls are slow
                once(system)
        for system in order:
            runs[system.name].append([])
        for turn in range(repeats):
            at = (asked.number + turn) % len(order)
            for system in order[at:] + order[:at]:
                runs[system.name][-1].append(once(system))

    def _cell(
        self, system: System, length: int, temperature: float, runs: dict[str, list[list[Run]]],
        replayed: list[list[int]] | None,
    ) -> dict[str, Any]:  # fmt: skip
        own = runs[system.name]
        live = [r[0].emitted for r in own]
        emitted = live if replayed is None else replayed
        cell: dict[str, Any] = {
            "length": length,
            "temperature": temperature,
            "system": system.name,
            "tree": system.tree,
        }
        cell["counts"] = {
            "clips": len(emitted), "live": len(own), "timed": self.plan.timed, "runs": self.plan.runs,
            "rounds": sum(map(len, emitted)), "tokens": sum(map(sum, emitted)),
        }  # fmt: skip
        cell["tau"] = interval([(sum(e), len(e)) for e in emitted], quotient)
        cell |= speeds(system, runs, self.plan.timed)
        cell["identical"] = identical(system, runs, greedy=temperature == 0)
        if replayed is not None:
            depth = TreeConfig.parse(str(system.tree)).depth
            cell["acceptance_by_depth"] = acceptance_by_depth(replayed, depth)
            same = sum(a == b for a, b in zip(live, replayed, strict=False))
            cell["replay_equals_live"] = {"clips": same, "of": len(live)}
        timed = range(self.plan.timed)
        cell["per_clip"] = {
            "tokens": [sum(e) for e in emitted], "rounds": [len(e) for e in emitted],
            "seconds": [round(median(own[i], "seconds"), 5) for i in timed],
            "decode_seconds": [round(median(own[i], "decode_seconds"), 5) for i in timed],
        }  # fmt: skip
        return cell


def speeds(system: System, runs: dict[str, list[list[Run]]], timed: int) -> dict[str, Any]:
    """DSR and ESR against both baselines: tokens per second after the first token, and over the whole call."""
    figures: dict[str, Any] = {}
    for reference in BASELINES:
        ours, theirs = runs[system.name][:timed], runs[reference.name][:timed]
        both = list(zip(ours, theirs, strict=True))
        decode = [(*_decode(a), *_decode(b)) for a, b in both]
        whole = [(*_whole(a), *_whole(b)) for a, b in both]
        figures[f"dsr_{reference.name}"] = interval(decode, speed_ratio)
        figures[f"esr_{reference.name}"] = interval(whole, speed_ratio)
    return figures


def _decode(runs: Sequence[Run]) -> tuple[float, float]:
    return runs[0].decode_tokens, median(runs, "decode_seconds")


def _whole(runs: Sequence[Run]) -> tuple[float, float]:
    return len(runs[0].tokens), median(runs, "seconds")


def median(runs: Sequence[Run], name: str) -> float:
    """Over the runs of one clip."""
    return statistics.median(getattr(r, name) for r in runs)


def identical(system: System, runs: dict[str, list[list[Run]]], greedy: bool) -> dict[str, Any] | None:
    """Live runs whose tokens are the reference's: transformers' greedy ones, or our plain sampling with the seed.

    None for transformers' own systems, and for the reference itself.
    """
    reference = TRANSFORMERS if greedy else PLAIN
    if system.kind not in OURS or system == reference:
        return None
    pairs = list(zip(runs[system.name], runs[reference.name], strict=True))
    same = sum(all(run.tokens == theirs[0].tokens for run in ours) for ours, theirs in pairs)
    return {"clips": same, "of": len(pairs), "to": reference.name}


def lossless(result: dict[str, Any]) -> bool:
    """Every live run of every system of ours gave the reference's tokens."""
    checked = [c["identical"] for c in result["cells"] if c["identical"] is not None]
    return all(x["clips"] == x["of"] for x in checked)


def file_hash(folder: str) -> str:
    """16 hex digits of a drafter's weights."""
    return hashlib.sha256((drafter_folder(folder) / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


def save_json(file: pathlib.Path, value: Any) -> None:
    """Writes the file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    new.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    new.replace(file)
