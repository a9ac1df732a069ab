"""tree="auto" on recorded drafts: its choices without the machine's noise, or with as much of it as is asked for.

    python -m bench.policy --save bench/results/policy.json
    python -m bench.policy --table bench/results/policy.json

Dev prompts are decoded plainly once. At every token every tree of the menu is drafted, and what the target would accept
of it is noted; each tree's seconds are measured apart. A generation under any policy is then a walk over these tables,
one generation after another with the same Costs, as in a process that serves. It is compared with the walks of fixed
trees: the best of them per drafter, prompts and temperature, by hindsight, is the bar. What a choice costs, and that a
draft behind rounds without one takes longer, is left out.
"""

import itertools
import pathlib
import pickle
import statistics
from dataclasses import dataclass, field

import numpy as np

from bench.measured import program
from bench.pairs import RANDOM, pairs
from sparrow.decoding.costs import PLAIN, Costs
from sparrow.decoding.generate import generate
from sparrow.decoding.policy import MENU, Policy
from sparrow.drafters.network import SparrowDrafter
from sparrow.evaluation.questions import sampling
from sparrow.evaluation.tape import Replaying, record
from sparrow.files import replacing
from sparrow.progress import track
from sparrow.tree import TreeConfig

LENGTHS = {"SmolLM2": (64,), "miniature": (64, 1024)}
DRAFTERS = ("shipped", "paper", RANDOM)  # of the miniature
Seconds = dict[str, tuple[float, float]]  # by tree: a round's drafting, and all else of it


@dataclass
class Walk:
    """One answer of the target, as policies meet it.

    Attributes:
        tokens: behind the first.
        accepted: by tree and token, how many drafted tokens are accepted there.
        scores: by tree and token, float32 [candidates].
    """

    tokens: int
    accepted: dict[str, list[int]] = field(default_factory=dict)
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)


def shapes_of(drafter: SparrowDrafter) -> list[TreeConfig]:
    """The menu that Policy.of makes for the drafter."""
    menu = {*MENU, TreeConfig.parse(drafter.config.tree)}
    return sorted(menu, key=lambda shape: (shape.nodes, shape.depth))


def walk_of(model, drafter: SparrowDrafter, inputs, options, seed: int) -> Walk:
    config = drafter.config
    tape = record(model, inputs, config.state_layers, options, seed, config.seen_layer)
    replaying, walk = Replaying(tape, drafter), Walk(len(tape.tokens) - 1)
    while not replaying.done:
        for shape in shapes_of(drafter):
            accepted, scores = replaying.draft(shape)
            walk.accepted.setdefault(str(shape), []).append(min(accepted, walk.tokens - replaying.at - 1))
            walk.scores.setdefault(str(shape), []).append(scores.numpy().copy())
        replaying.go_on(1)
    return walk


def seconds_of(model, drafter: SparrowDrafter, inputs) -> Seconds:
    """Medians over three generations of each tree."""
    made: dict[str, list[tuple[float, float]]] = {}
    for _ in range(3):
        for shape in (PLAIN, *shapes_of(drafter)):
            own, tree = (None, None) if shape.nodes == 1 else (drafter, shape)
            stats = generate(model, own, **inputs, **sampling(0.0, 64), tree=tree, seed=0).stats
            draft = stats.seconds["draft"] / stats.rounds
            made.setdefault(str(shape), []).append((draft, stats.decode_seconds / stats.rounds - draft))
    return {tree: tuple(statistics.median(part) for part in zip(*times, strict=True)) for tree, times in made.items()}


def fixed(walk: Walk, tree: str, seconds: Seconds) -> float:
    """Seconds of the answer with one tree; "none" = plain decoding."""
    at = rounds = 0
    while at < walk.tokens:
        at += 1 + (walk.accepted[tree][at] if tree in walk.accepted else 0)
        rounds += 1
    return rounds * sum(seconds[tree])


def under_policy(walk: Walk, policy: Policy, seconds: Seconds, noise: np.random.Generator, spread: float) -> float:
    """Seconds of the answer under a policy, which sees each round's with lognormal noise of this spread on them."""
    at, total = 0, 0.0
    while at < walk.tokens:
        tree = str(policy.shape)
        accepted = walk.accepted[tree][at] if tree in walk.accepted else 0
        scores = walk.scores[tree][at] if tree in walk.scores else np.zeros(1, np.float32)
        draft, rest = seconds[tree]
        total += draft + rest
        seen = np.exp(noise.normal(0, spread, 2)) if spread else (1.0, 1.0)
        policy.saw([accepted], draft * seen[0], rest * seen[1], scores[None])
        at += accepted + 1
    return total


def compared(walks: list[Walk], menu: list[TreeConfig], own: TreeConfig, seconds: Seconds, spread: float, seeds: int):
    """Of one drafter's prompts in a row: the best fixed tree, auto's speed over its, and over plain decoding's."""
    total = {tree: sum(fixed(walk, tree, seconds) for walk in walks) for tree in ("none", *map(str, menu))}
    best = min((tree for tree in total if tree != "none"), key=lambda tree: total[tree])
    ratios, worst = [], []
    for seed in range(seeds):
        noise, costs = np.random.default_rng(seed), Costs(menu)
        times = [
            under_policy(walk, Policy(costs, own if own in menu else menu[0]), seconds, noise, spread) for walk in walks
        ]
        ratios.append(total[best] / sum(times))
        worst.append(min(fixed(walk, "none", seconds) / t for walk, t in zip(walks, times, strict=True)))
    over_plain = total["none"] / total[best] * statistics.mean(ratios)
    return {
        "best": best, "auto_over_best": ratios, "auto_over_plain": over_plain, "worst_over_plain": min(worst),
    }  # fmt: skip


def recorded(prompts: int, clips: int, new: int) -> list[dict]:
    """One per case and temperature: its walks, the trees' seconds, and the drafter's own tree."""
    found = []
    for target, model, drafters, asked in pairs("dev", prompts, clips, LENGTHS, DRAFTERS):
        for (name, drafter), (kind, inputs) in itertools.product(drafters.items(), asked.items()):
            seconds, jobs = seconds_of(model, drafter, inputs[0]), list(enumerate(inputs))
            menu, own = shapes_of(drafter), TreeConfig.parse(drafter.config.tree)
            for temperature in (0.0, 1.0):
                options, shown = sampling(temperature, new), track(jobs, f"{target}, {name}, {kind}", "prompts")
                walks = [walk_of(model, drafter, made, options, i) for i, made in shown]
                found.append({
                    "case": (target, name, kind), "temperature": temperature, "walks": walks, "menu": menu, "own": own,
                    "seconds": seconds,
                })  # fmt: skip
    return found


def measure(prompts: int, clips: int, new: int, spread: float, seeds: int, record: str | None) -> dict[str, object]:
    """One row per case and temperature. `record`: file in which the recorded drafts are kept, and read where it is."""
    kept = pathlib.Path(record) if record else None
    if kept and kept.is_file():
        found = pickle.loads(kept.read_bytes())
    else:
        found = recorded(prompts, clips, new)
        if kept:
            with replacing(kept) as place:
                place.write_bytes(pickle.dumps(found))
    rows = []
    for one in found:
        made = compared(one["walks"], one["menu"], one["own"], one["seconds"], spread, seeds)
        target, drafter, asked = one["case"]
        rows.append({"target": target, "drafter": drafter, "prompts": asked, "temperature": one["temperature"],
                     "seconds": one["seconds"], **made})  # fmt: skip
    return {"new_tokens": new, "spread": spread, "rows": rows}


def table(result: dict) -> str:
    names = "target", "drafter", "prompts", "T", "best fixed tree", "auto / best (worst seed)", "auto / plain (worst)"
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for r in result["rows"]:
        best = f"{statistics.mean(r['auto_over_best']):.3f} ({min(r['auto_over_best']):.3f})"
        plain = f"{r['auto_over_plain']:.2f} ({r['worst_over_plain']:.2f})"
        cells = [r["target"], r["drafter"], r["prompts"], f"{r['temperature']:g}", r["best"], best, plain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {
        "prompts": 10, "clips": 6, "new": {"type": int, "default": 96, "help": "tokens at most"},
        "spread": {"type": float, "default": 0.05, "help": "of the lognormal noise on a round's seconds"},
        "seeds": {"type": int, "default": 10, "help": "of that noise"},
        "record": {"default": None, "help": "file in which the recorded drafts are kept"},
    }  # fmt: skip
    program("bench.policy", __doc__, options, measure, table)
