"""tree="auto" beside every fixed tree, plain decoding and transformers' generate, on the shipped target.

    python -m bench.auto_tree --save bench/results/auto_tree.json
    python -m bench.auto_tree --table bench/results/auto_tree.json

Each system decodes every prompt of the test split in turns, after one turn that is not counted; figures are medians of
the turns, in tokens per CPU second behind the first. Drafters: the shipped one, the paper's recipe, and one with random
weights, whose drafts are worth nothing. A fixed tree is chosen by hindsight: per drafter, length and temperature, the
one with the greatest mean. The greatest of many noisy means is lucky; so it is chosen once more by the odd turns and
measured by the even ones, and the other way round.
"""

import statistics
import time

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
    stamps = Stamps(time.process_time)
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
                 "tokens": len(texts["auto"]), "tokens_per_second": medians, "turns": rates}
            )  # fmt: skip
            progress.advance()
    return {"rows": rows}


NOT_FIXED = ("transformers", "plain", "auto")


def best_fixed(mean: dict[str, float]) -> str:
    """The fixed tree of the greatest mean."""
    return max((system for system in mean if system not in NOT_FIXED), key=lambda system: mean[system])


def over_the_other_turns(rows: list[dict]) -> float | None:
    """The mean of auto's rate over that of the fixed tree that is best in the other turns; None where they are few, or
    were not kept.
    """
    turns = min(len(row.get("turns", {}).get("auto", ())) for row in rows)
    if turns < 2:
        return None
    halves = [
        {s: statistics.mean(statistics.mean(r["turns"][s][half:turns:2]) for r in rows) for s in rows[0]["turns"]}
        for half in (0, 1)
    ]
    return statistics.mean(mean["auto"] / mean[best_fixed(other)] for mean, other in (halves, halves[::-1]))


def table(result: dict) -> str:
    """The mean of auto's rate over each other one's, and the worst prompt."""
    chosen = all("turns" in row for row in result["rows"])
    other = "| auto / best of the other turns " if chosen else ""
    lines = [
        f"| drafter | visual tokens | T | best fixed tree | auto / best fixed {other}| auto / plain (worst) "
        "| auto / transformers (worst) |",
        f"|---|---|---|---|---|{'---|' if chosen else ''}---|---|",
    ]
    keys = dict.fromkeys((r["drafter"], r["visual_tokens"], r["temperature"]) for r in result["rows"])
    for key in keys:
        rows = [r for r in result["rows"] if (r["drafter"], r["visual_tokens"], r["temperature"]) == key]
        rates = [row["tokens_per_second"] for row in rows]
        mean = {s: statistics.mean(r[s] for r in rates) for s in rates[0]}
        best = best_fixed(mean)
        cells = [f"{mean['auto'] / mean[best]:.2f}"]
        if chosen:
            ratio = over_the_other_turns(rows)
            cells.append("" if ratio is None else f"{ratio:.2f}")
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
