"""Prompts of one's own, for every family: each system on each prompt of a file; raw counts and times, one JSON."""

import hashlib
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparrow.decoding.compare import compare
from sparrow.drafters.storage import WEIGHTS_FILE
from sparrow.evaluation import systems as one
from sparrow.evaluation.evaluate import started
from sparrow.evaluation.questions import sampling
from sparrow.evaluation.systems import OURS, Run, System
from sparrow.evaluation.tables import BASELINES, reference
from sparrow.evaluation.tape import model_hash
from sparrow.files import write_json
from sparrow.targets.adapter import Target
from sparrow.training.clips import Clips
from sparrow.tree import TreeConfig

TABLE = "clips"


@dataclass(frozen=True)
class Plan:
    """What is measured on every prompt.

    Attributes:
        systems: beside the two baselines.
        temperatures: 0 = greedy.
        runs: of each system on each prompt, in turns; a time is their median.
        seed: of the sampling noise; prompt i draws with seed + i.
        max_new_tokens: per prompt.
        clock: of the times, "wall" or "cpu".
    """

    systems: tuple[System, ...]
    temperatures: tuple[float, ...] = (0.0,)
    runs: int = 1
    seed: int = 0
    max_new_tokens: int = 256
    clock: str = "wall"

    @property
    def all_systems(self) -> tuple[System, ...]:
        return (*BASELINES, *self.systems)

    def operations(self, prompts: int) -> int:
        """Runs over so many prompts, without those that warm up."""
        return prompts * len(self.temperatures) * len(self.all_systems) * self.runs


def write(
    plan: Plan, model: Any, drafters: Mapping[str, Any], clips: Clips, about: dict[str, Any], file: pathlib.Path,
    provenance: dict[str, Any], tell: Callable[[str, int], None],
) -> dict[str, Any]:  # fmt: skip
    """Measures the prompts that the file does not hold yet; it is written after each.

    Args:
        drafters: system name -> drafter, bound to the model.
        about: what the prompts are and how they were read, to be kept and compared.
        tell: what is done now, and how many runs ended.

    Raises:
        ValueError: the file holds an evaluation with other settings; the first that differs is named.
    """
    kind = str(model.dtype).removeprefix("torch.")
    plain = {**asdict(plan), "systems": [asdict(s) for s in plan.systems], "temperatures": list(plan.temperatures)}
    settings = {"table": TABLE, **plain, "target": model_hash(model), "dtype": kind, **about}
    result = started(file, settings, provenance, {"rows": []})
    done, cold = {row["clip"] for row in result["rows"]}, True
    for number in range(len(clips)):
        text = f"prompt {number + 1} of {len(clips)}"
        if number in done:
            tell(f"{text}: done before", plan.operations(1))
            continue
        inputs = Target(model).inputs(clips.inputs(number))
        if cold:  # not counted: first calls are slow
            for system in plan.all_systems:
                short = sampling(plan.temperatures[0], min(4, plan.max_new_tokens))
                one.run(system, model, drafters.get(system.name), inputs, short, 0, plan.clock)
            cold = False
        row = measured(plan, model, drafters, inputs, number, lambda: tell(text, 1))  # noqa: B023
        result["rows"].append({"clip": number, "asked": clips.describe(number), **row})
        write_json(file, result, indent=1)
    return result


def measured(
    plan: Plan, model: Any, drafters: Mapping[str, Any], inputs: dict[str, Any], number: int, tell: Callable[[], None]
) -> dict[str, Any]:
    """One prompt: {"text_tokens", "visual_tokens", "at": {temperature: {system: what it did}}}."""
    is_text, made = Target(model).is_text(inputs["input_ids"]), {}
    for temperature in plan.temperatures:
        options, seed = sampling(temperature, plan.max_new_tokens), plan.seed + number
        runs: dict[str, list[Run]] = {s.name: [] for s in plan.all_systems}
        for turn in range(plan.runs):
            first = (number + turn) % len(plan.all_systems)
            for system in plan.all_systems[first:] + plan.all_systems[:first]:
                drafter = drafters.get(system.name)
                runs[system.name].append(one.run(system, model, drafter, inputs, options, seed, plan.clock))
                tell()
        other = reference(temperature)
        want = runs[other.name][0].tokens
        at = {}
        for system in plan.all_systems:
            at[system.name] = _figures(runs[system.name])
            if system.kind in OURS and system != other:
                at[system.name]["identical"] = all(run.tokens == want for run in runs[system.name])
                if temperature == 0 and not at[system.name]["identical"]:
                    more: dict[str, Any] = {"tree": system.tree} if system.kind == "sparrow" else {}
                    found = compare(
                        model, one.drafter_of(system, drafters.get(system.name)), **inputs, **options, **more
                    )
                    at[system.name] |= {
                        "lossless": found.lossless,
                        "mismatches": [asdict(m) | {"near_tie": m.near_tie} for m in found.mismatches],
                    }
        made[f"{temperature:g}"] = at
    return {"text_tokens": int(is_text.sum()), "visual_tokens": int((~is_text).sum()), "at": made}


def _figures(runs: list[Run]) -> dict[str, Any]:
    first = runs[0]
    return {
        "tokens": len(first.tokens), "decode_tokens": first.decode_tokens,
        "seconds": [round(r.seconds, 5) for r in runs], "decode_seconds": [round(r.decode_seconds, 5) for r in runs],
        "emitted": first.emitted, "sha256": hashlib.sha256(str(first.tokens).encode()).hexdigest()[:16],
    }  # fmt: skip


def hash_of(drafter: pathlib.Path) -> str:
    """16 hex digits of a drafter's weights."""
    return hashlib.sha256((drafter / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


def depth_of(system: dict[str, Any], emitted: list[list[int]]) -> int:
    """Levels of a system's tree; where it was chosen while decoding, of the longest path that was accepted."""
    if system["kind"] == "sparrow" and system["tree"] != one.AUTO:
        return TreeConfig.parse(system["tree"]).depth
    return max((n - 1 for rounds in emitted for n in rounds), default=0)


def faults(result: dict[str, Any]) -> list[str]:
    """Outputs of ours that are not the reference's, in float32, near ties apart; none is right."""
    found = []
    for row in result["rows"] if result["settings"]["dtype"] == "float32" else ():
        for temperature, systems in row["at"].items():
            for name, made in systems.items():
                if not made.get("identical", True) and not made.get("lossless", False):
                    found.append(f"{name} on prompt {row['clip'] + 1}, T={temperature}: not the reference's tokens")
    return found
