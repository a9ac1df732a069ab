"""What it is worth to run verify passes through our operators (targets/blocks.py) and not through the model's modules.

    python -m bench.blocks --save bench/results/blocks.json
    python -m bench.blocks --target smollm2 --save bench/results/blocks_smollm2.json

Whole runs of `generate`, greedy, on clips of the test split (and transformers' own): the two take turns, and are made
to differ by a hook that does nothing. Tokens per CPU second behind the first, on one thread; per second on several. In
float32 the texts must be the same; in bfloat16, where transformers' passes round otherwise, it is said how many are.
"""

import contextlib
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.measured import Stamps, program
from sparrow.cli.loading import load_drafter, load_target
from sparrow.decoding.generate import generate
from sparrow.evaluation.questions import question
from sparrow.miniature.shipped import pair
from sparrow.progress import Progress
from sparrow.smollm2.fetch import fetch
from sparrow.targets.adapter import Target
from sparrow.video import load_settings

REAL = pathlib.Path(__file__).parent / "smollm2" / "drafter"
TREES = {"miniature": ("12-6-2", "25-5-8"), "smollm2": ("8-3-4", "25-5-8")}


@contextlib.contextmanager
def through_modules(model: Any) -> Iterator[None]:
    """A hook that does nothing: verify passes run through transformers' modules inside."""
    hook = model.model.language_model.norm.register_forward_hook(lambda *args: None)
    try:
        yield
    finally:
        hook.remove()


def rates_of(model: Any, drafter: Any, inputs: dict[str, Any], trees: tuple[str, ...], new: int) -> dict[str, float]:
    """Tokens per second of each way, of one prompt once, and the share of them whose text is transformers'."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    options = {**inputs, "max_new_tokens": new, "eos_token_id": None, "do_sample": False}
    rates, texts = {}, []

    def timed(name: str, run: Any) -> None:
        stamps = Stamps(clock)
        texts.append(run(stamps).tolist())
        assert stamps.rate is not None
        rates[name] = stamps.rate

    timed("transformers", lambda stamps: model.generate(**options, streamer=stamps))
    for tree in (None, *trees):
        own = None if tree is None else drafter
        for way, inside in (("modules", through_modules(model)), ("blocks", contextlib.nullcontext())):
            with inside:
                timed(
                    f"{tree or 'plain'}, {way}",
                    lambda stamps, own=own, tree=tree: (
                        generate(model, own, **options, tree=tree, streamer=stamps).sequences
                    ),
                )
    rates["equal texts"] = statistics.mean(text == texts[0] for text in texts[1:])
    if model.dtype == torch.float32 and rates["equal texts"] < 1:
        raise AssertionError("the texts differ")
    return rates


def measure(target: str, clips: int, turns: int, new: int, visual: int, dtype: str) -> dict[str, Any]:
    """One row per clip: each way's rate, the median of the turns."""
    place, folder = pair() if target == "miniature" else (fetch(), REAL)
    model, tokenizer = load_target(place, dtype, torch.device("cpu"), False)
    drafter, settings, rows = load_drafter(str(folder), model), load_settings(place), []
    with Progress("decoding", clips, "clips") as progress:
        for number in range(clips):
            inputs = Target(model).inputs(question(settings, tokenizer, visual, number, split="test").inputs)
            found = [rates_of(model, drafter, inputs, TREES[target], new) for _ in range(turns)]
            rows.append({name: statistics.median(one[name] for one in found) for name in found[0]})
            progress.advance()
    return {"target": target, "dtype": dtype, "visual_tokens": visual, "new_tokens": new, "turns": turns, "rates": rows}


def table(result: dict[str, Any]) -> str:
    """Means over the clips, and the worst."""
    lines = ["| tree | blocks / modules (worst) | blocks / transformers (worst) |", "|---|---|---|"]
    for tree in ("plain", *TREES[result["target"]]):
        cells = []
        for other in (f"{tree}, modules", "transformers"):
            ratios = [row[f"{tree}, blocks"] / row[other] for row in result["rates"]]
            cells.append(f"{statistics.mean(ratios):.2f} ({min(ratios):.2f})")
        lines.append(f"| {tree} | {' | '.join(cells)} |")
    if result.get("dtype", "float32") != "float32":
        lines.append(f"\nEqual texts: {statistics.mean(row['equal texts'] for row in result['rates']):.0%}.")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {
        "target": {"choices": list(TREES), "default": "miniature"}, "clips": 6, "turns": 3, "new": 96, "visual": 64,
        "dtype": {"choices": ["float32", "bfloat16"], "default": "float32"}, "threads": 1,
    }  # fmt: skip
    program("bench.blocks", __doc__, options, measure, table)
