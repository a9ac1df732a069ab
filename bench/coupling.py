"""What drawing with the target's noise is worth to a drafter: accepted length with it and without it.

    python -m bench.coupling --save bench/results/coupling.json
    python -m bench.coupling --split dev --prompts 16 --clips 6 --weights 0 0.5 0.7 0.8 0.85 1
    python -m bench.coupling --table bench/results/coupling.json

Prompts are decoded plainly once per way of sampling and kept with the target's states; every drafter is replayed on the
same runs, with so much of the noise, 0 = none (evaluation/tape.py: the same tokens per round as the live loop, by
test). No times: all run the same passes.
"""

import itertools

from bench.measured import program
from bench.pairs import pairs
from sparrow.drafters.text import NOISE_WEIGHT
from sparrow.evaluation.cells import interval, quotient
from sparrow.evaluation.tape import record, replay
from sparrow.progress import track
from sparrow.tree import TreeConfig

WAYS = {
    "T = 0.5": {"temperature": 0.5, "top_k": 0, "top_p": 1.0},
    "T = 1": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "T = 1.3": {"temperature": 1.3, "top_k": 0, "top_p": 1.0},
    "T = 0.7, top-k 50, top-p 0.9": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
}
TREES = ("4-4-1", "7-3-3", "25-5-8")
LENGTHS = {"SmolLM2": (64,), "miniature": (1024,)}
DRAFTERS = ("shipped", "paper", "msd", "vispec")  # of the miniature


def measure(split: str, prompts: int, clips: int, new: int, weights: list[float]) -> dict[str, object]:
    """One row per target, kind, way of sampling, drafter, tree and weight: tokens and rounds of each prompt."""
    rows = []
    for target, model, drafters, asked in pairs(split, prompts, clips, LENGTHS, DRAFTERS):
        jobs = [(k, w, n, d) for k, inputs in asked.items() for w in WAYS for n in range(len(inputs)) for d in drafters]
        found: dict[tuple, list] = {}
        for kind, way, number, name in track(jobs, target, "replays"):
            drafter, options = drafters[name], {"do_sample": True, "max_new_tokens": new, **WAYS[way]}
            config = drafter.config
            tape = record(model, asked[kind][number], config.state_layers, options, number, config.seen_layer)
            for tree, weight in itertools.product(TREES, weights):
                emitted = replay(tape, drafter, TreeConfig.parse(tree), weight)
                found.setdefault((kind, way, name, tree, weight), []).append([sum(emitted), len(emitted)])
        for (kind, way, name, tree, weight), counts in found.items():
            tokens, rounds = (list(of) for of in zip(*counts, strict=True))
            rows.append({
                "target": target, "kind": kind, "sampling": way, "drafter": name, "tree": tree, "weight": weight,
                "tokens": tokens, "rounds": rounds,
            })  # fmt: skip
    return {"split": split, "new_tokens": new, "weights": weights, "rows": rows}


def counts_of(row: dict) -> list[tuple[int, int]]:
    """(tokens, rounds) of the prompts whose answer has more than one token."""
    return [pair for pair in zip(row["tokens"], row["rounds"], strict=True) if pair[1]]


def shown(tau: dict) -> str:
    if tau["low"] is None:
        return "-" if tau["value"] is None else f"{tau['value']:.2f}"
    return f"{tau['value']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}]"


def table(result: dict) -> str:
    """tau with its 95 % interval over prompts at each weight, and the last one's over the first's."""
    weights = result["weights"]
    names = [f"noise x {w:g}" if w else "no noise" for w in weights]
    lines = [f"| target | prompts | sampling | drafter | tree | {' | '.join(names)} | ratio |"]
    lines.append("|---" * (6 + len(weights)) + "|")
    rows = {tuple(r[k] for k in ("target", "kind", "sampling", "drafter", "tree", "weight")): r for r in result["rows"]}
    for key in [key[:-1] for key in rows if key[-1] == weights[0]]:
        taus = [interval(counts_of(rows[(*key, weight)]), quotient) for weight in weights]
        target, kind, way, drafter, tree = key
        first, last = taus[0]["value"], taus[-1]["value"]
        ratio = f"{last / first:.2f}" if first and last else "-"
        prompts = f"{len(counts_of(rows[(*key, weights[0])]))} of {kind}"
        lines.append(f"| {' | '.join([target, prompts, way, drafter, tree, *map(shown, taus), ratio])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {
        "split": {"default": "test", "choices": ["dev", "test"]}, "prompts": 40, "clips": 12,
        "new": {"type": int, "default": 64, "help": "tokens at most"},
        "weights": {"type": float, "nargs": "+", "default": [0.0, NOISE_WEIGHT], "help": "of the noise in the drafts"},
    }  # fmt: skip
    program("bench.coupling", __doc__, options, measure, table)
