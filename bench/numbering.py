"""The shipped drafters under either numbering of prompts, transformers' and vLLM's, in the own loop.

    python -m bench.numbering --save bench/results/serving/numbering.json
    python -m bench.numbering --table bench/results/serving/numbering.json

Greedy, float32, clips of the test split: tokens per round by the chain that vLLM verifies and by the default tree, and
how sure the target is of its own text: the mean entropy of what it draws from, in nats.
"""

import numpy as np
import torch

from bench.measured import program
from sparrow.cli.loading import load_drafter, load_target
from sparrow.decoding.generate import generate
from sparrow.evaluation.cells import interval, quotient
from sparrow.evaluation.questions import question
from sparrow.miniature.shipped import drafter_folder, pair
from sparrow.progress import Progress
from sparrow.targets.adapter import Target
from sparrow.targets.teacher import teacher_states
from sparrow.video import load_settings

DRAFTERS = ("shipped", "shipped_reference")
NUMBERINGS = ("hf", "reference")
TREES = ("4-4-1", "12-6-2")


@torch.no_grad()
def entropies(target: Target, inputs, answer, numbering: str) -> list[float]:
    """Of the distributions an answer's tokens were the likeliest of, one per token."""
    states = teacher_states(target, inputs, answer, [target.num_layers], numbering).states[target.num_layers]
    logp = target.head(states[-len(answer) - 1 : -1]).float().log_softmax(-1)
    return (-(logp.exp() * logp).sum(-1)).tolist()


def measure(lengths: list[int], clips: int, new_tokens: int) -> dict[str, object]:
    """A row per drafter, numbering and tree; entropies per numbering."""
    folder = pair()[0]
    model, tokenizer = load_target(folder, "float32", torch.device("cpu"), False)
    target, settings = Target(model), load_settings(folder)
    drafters = {name: load_drafter(str(drafter_folder(name)), model) for name in DRAFTERS}
    emitted: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    unsure: dict[str, list[float]] = {name: [] for name in NUMBERINGS}
    with Progress("decoding", clips, "clips") as progress:
        for number in range(clips):
            asked = question(settings, tokenizer, lengths[number % len(lengths)], number, split="test")
            inputs = target.inputs(asked.inputs)
            for numbering in NUMBERINGS:
                options = {"do_sample": False, "max_new_tokens": new_tokens, "positions": numbering}
                for name, drafter in drafters.items():
                    for tree in TREES:
                        out = generate(model, drafter, **inputs, **options, tree=tree)
                        counts = sum(out.stats.emitted), len(out.stats.emitted)
                        emitted.setdefault((name, numbering, tree), []).append(counts)
                answer = out.sequences[0, inputs["input_ids"].shape[1] :]
                unsure[numbering] += entropies(target, inputs, answer, numbering)
            progress.advance()
    rows = [
        {"drafter": key[0], "numbering": key[1], "tree": key[2], **interval(counts, quotient)}
        for key, counts in emitted.items()
    ]
    entropy = {name: float(np.mean(values)) for name, values in unsure.items()}
    return {"clips": clips, "visual_tokens": lengths, "new_tokens": new_tokens, "rows": rows, "entropy": entropy}


def table(result) -> str:
    """Markdown: tokens per round, with 95 % intervals over clips."""
    found = {(r["drafter"], r["numbering"], r["tree"]): r for r in result["rows"]}
    lines = [
        f"| drafter | numbering | {' | '.join(TREES)} | entropy of the target |",
        f"|---|---|{'---|' * len(TREES)}---|",
    ]
    for name in DRAFTERS:
        for numbering in NUMBERINGS:
            cells = [found[name, numbering, tree] for tree in TREES]
            text = " | ".join(f"{c['value']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in cells)
            lines.append(f"| {name} | {numbering} | {text} | {result['entropy'][numbering]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {"lengths": {"type": int, "nargs": "+", "default": [64, 128, 256]}, "clips": 24, "new_tokens": 96}
    program("bench.numbering", __doc__, options, measure, table)
