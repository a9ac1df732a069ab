"""Several prompts at once, beside one after the other and beside transformers' own batch, on the shipped pair.

    python -m bench.batches --save bench/results/batches.json
    python -m bench.batches --table bench/results/batches.json

Clips of the test split with 64 to 256 visual tokens, mixed, greedy, 96 new tokens each. The systems take turns; a turn
is a whole pass over the prompts, prefill included, and figures are medians of the turns. Every text of ours is checked
against transformers' own of that prompt alone.
"""

import statistics
import time

import torch

from bench.measured import program
from sparrow.cli.loading import load_drafter, load_target
from sparrow.decoding.generate import generate
from sparrow.evaluation.questions import question
from sparrow.miniature.shipped import pair
from sparrow.progress import Progress
from sparrow.targets.adapter import Target
from sparrow.video import load_settings, together

NEW = 96
LENGTHS = (64, 256, 128, 64, 256, 64, 128, 256)  # visual tokens of the prompts


def systems_of(model, drafter, prompts, pad):
    """name -> callable() that decodes all prompts and returns each one's new tokens."""
    options = {"max_new_tokens": NEW, "eos_token_id": None, "do_sample": False}
    batch = together(prompts, pad)

    def new(sequences, inputs):
        return sequences[:, inputs["input_ids"].shape[1] :].tolist()

    def one_by_one(run):
        return lambda: [new(run(one), one)[0] for one in prompts]

    def theirs(inputs):
        return model.generate(**inputs, **options, pad_token_id=pad)

    def ours(own):
        return lambda inputs: generate(model, own, **inputs, **options, pad_token_id=pad, tree="own").sequences

    runs = {"transformers": theirs, "plain": ours(None), "drafted": ours(drafter)}
    alone = {f"{name}, one by one": one_by_one(run) for name, run in runs.items()}
    return alone | {f"{name}, batch": lambda run=run: new(run(batch), batch) for name, run in runs.items()}


def measure(sizes: list[int], turns: int) -> dict[str, object]:
    """One row per batch size: tokens per second of each system."""
    target, drafter_folder = pair()
    model, tokenizer = load_target(target, "float32", torch.device("cpu"), False)
    drafter, settings, rows = load_drafter(str(drafter_folder), model), load_settings(target), []
    pad = int(model.generation_config.pad_token_id or tokenizer.pad_token_id)
    asked = [question(settings, tokenizer, n, i, split="test") for i, n in enumerate(LENGTHS[: max(sizes)])]
    with Progress("decoding", len(sizes) * (turns + 1), "turns") as progress:
        for size in sizes:
            systems = systems_of(model, drafter, [Target(model).inputs(one.inputs) for one in asked[:size]], pad)
            seconds: dict[str, list[float]] = {name: [] for name in systems}
            for turn in range(turns + 1):
                texts = {}
                for name, run in systems.items():
                    begun = time.perf_counter()
                    texts[name] = run()
                    seconds[name] += [time.perf_counter() - begun] if turn else []
                if any(text != texts["transformers, one by one"] for text in texts.values()):
                    raise AssertionError(f"batch of {size}: the texts differ")
                progress.advance()
            rates = {name: size * NEW / statistics.median(times) for name, times in seconds.items()}
            rows.append({"batch": size, "tokens_per_second": rates, "seconds": seconds})
    return {"rows": rows}


def table(result: dict) -> str:
    """Throughput of batches over the same prompts one by one, and over transformers' batch."""
    lines = ["| prompts | drafted batch / drafted one by one | drafted batch / transformers' batch "
             "| plain batch / transformers' batch |", "|---|---|---|---|"]  # fmt: skip
    for row in result["rows"]:
        of = row["tokens_per_second"]
        cells = [of["drafted, batch"] / of["drafted, one by one"], of["drafted, batch"] / of["transformers, batch"],
                 of["plain, batch"] / of["transformers, batch"]]  # fmt: skip
        lines.append(f"| {row['batch']} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {"sizes": {"type": int, "nargs": "+", "default": [1, 2, 4, 8]}, "threads": 2, "turns": 5}
    program("bench.batches", __doc__, options, measure, table)
