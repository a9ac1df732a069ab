"""tree="auto" beside every fixed tree, plain decoding and transformers' generate, on the shipped target.

    python -m bench.auto_tree --save bench/results/auto_tree.json
    python -m bench.auto_tree --table bench/results/auto_tree.json

Each system decodes every prompt of the test split in turns, after one turn that is not counted; figures are medians of
the turns, in tokens per second behind the first. Drafters: the shipped one, the paper's recipe, and one with random
weights, whose drafts are worth nothing. A fixed tree is chosen by hindsight: per drafter, length and temperature, the
one with the greatest mean.
"""

import statistics

import torch

from bench.measured import Stamps, program
from sparrow.cli.loading import load_drafter, load_target
from sparrow.decoding.generate import generate
from sparrow.decoding.policy import MENU
from sparrow.drafters.network import SparrowDrafter
from sparrow.evaluation.questions import question, sampling
from sparrow.miniature.shipped import drafter_folder, pair
from sparrow.progress import Progress
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig
from sparrow.video import load_settings

DRAFTERS = ("shipped", "paper", "random")
NEW = 128  # tokens at most


def timed(run) -> tuple[list[int], float]:
    """Tokens, and tokens per second behind the first; `run` gets a streamer."""
    stamps = Stamps()
    return run(stamps), stamps.rate or float("nan")


def systems_of(model, drafter, inputs, options):
    """name -> callable(streamer), of one prompt."""
    prompt = inputs["input_ids"].shape[1]

    def theirs(streamer):
        return model.generate(**inputs, **options, streamer=streamer)[0, prompt:].tolist()

    def ours(own, tree):
        def run(streamer):
            out = generate(model, own, **inputs, **options, tree=tree, seed=0, streamer=streamer)
            return out.sequences[0, prompt:].tolist()

        return run

    fixed = {str(tree): ours(drafter, tree) for tree in (*MENU, TreeConfig.parse(drafter.config.tree))}
    return {"transformers": theirs, "plain": ours(None, None), "auto": ours(drafter, "auto"), **fixed}


def measure(lengths: list[int], prompts: int, turns: int, temperatures: list[float]) -> dict[str, object]:
    """One row per drafter, length, temperature and prompt: tokens, and the rate of each system."""
    folder = pair()[0]
    model, tokenizer = load_target(folder, "float32", torch.device("cpu"), False)
    drafters = {name: load_drafter(str(drafter_folder(name)), model) for name in DRAFTERS if name != "random"}
    drafters["random"] = SparrowDrafter.from_target(Target(model))
    cases = [(d, n, t, i) for d in DRAFTERS for n in lengths for t in temperatures for i in range(prompts)]
    rows: list[dict[str, object]] = []
    with Progress("decoding", len(cases), "prompts") as progress:
        for name, length, temperature, number in cases:
            asked = question(load_settings(folder), tokenizer, length, number, split="test")
            options = sampling(temperature, NEW)
            systems = systems_of(model, drafters[name], Target(model).inputs(asked.inputs), options)
            rates: dict[str, list[float]] = {system: [] for system in systems}
            for turn in range(turns + 1):
                texts = {}
                for system, run in systems.items():
                    texts[system], rate = timed(run)
                    rates[system] += [rate] if turn else []
                ours = {system: text for system, text in texts.items() if temperature == 0 or system != "transformers"}
                if len({tuple(text) for text in ours.values()}) > 1:
                    raise AssertionError(f"{name}, {length} visual tokens, prompt {number}: the texts differ")
            medians = {system: statistics.median(times) for system, times in rates.items()}
            rows.append(
                {"drafter": name, "visual_tokens": length, "temperature": temperature, "prompt": number,
                 "tokens": len(texts["auto"]), "tokens_per_second": medians}
            )  # fmt: skip
            progress.advance()
    return {"rows": rows}


def table(result: dict) -> str:
    """The mean of auto's rate over each other one's, and the worst prompt."""
    lines = [
        "| drafter | visual tokens | T | best fixed tree | auto / best fixed | auto / plain (worst) "
        "| auto / transformers (worst) |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((r["drafter"], r["visual_tokens"], r["temperature"]) for r in result["rows"])
    for key in keys:
        rates = [
            r["tokens_per_second"]
            for r in result["rows"]
            if (r["drafter"], r["visual_tokens"], r["temperature"]) == key
        ]
        mean = {s: statistics.mean(r[s] for r in rates) for s in rates[0]}
        best = max((s for s in mean if s not in ("transformers", "plain", "auto")), key=lambda s: mean[s])
        cells = [f"{mean['auto'] / mean[best]:.2f}"]
        for other in ("plain", "transformers"):
            ratios = [r["auto"] / r[other] for r in rates]
            cells.append(f"{statistics.mean(ratios):.2f} ({min(ratios):.2f})")
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:g} | {best} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {
        "lengths": {"type": int, "nargs": "+", "default": [64, 1024]},
        "temperatures": {"type": float, "nargs": "+", "default": [0.0, 1.0]},
        "prompts": 4,
        "turns": 3,
    }
    program("bench.auto_tree", __doc__, options, measure, table)
