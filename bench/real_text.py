"""A drafter on real language: tau, speed and losslessness of SmolLM2 with the drafter trained for it.

    python -m bench.real_text --save bench/results/smollm2/drafter.json
    python -m bench.real_text --table bench/results/smollm2/drafter.json

Instructions of the test split, whose topics no training prompt had, and clips of the test split. The systems take
turns, one run of each per prompt; times are this process' CPU seconds behind the first token, on one thread. Greedy
texts are checked against transformers', sampled ones against plain decoding with the same seed.
"""

import pathlib
import time

import torch

from bench.measured import Stamps, program
from sparrow.cli.loading import load_drafter, load_target
from sparrow.decoding.generate import generate
from sparrow.evaluation.cells import interval, quotient
from sparrow.evaluation.questions import question, sampling
from sparrow.progress import Progress
from sparrow.smollm2.fetch import fetch
from sparrow.smollm2.prompts import prompts as instructions
from sparrow.targets.adapter import Target
from sparrow.video import load_settings, prepare

DRAFTER = pathlib.Path(__file__).parent / "smollm2" / "drafter"
TREES = ("3-1-3", "7-3-3", "25-5-8")
CLIP_TOKENS = 64


def runs_of(model, drafter):
    """name -> (temperature, callable(inputs, options, streamer) -> (new tokens, stats))."""

    def theirs(inputs, options, streamer):
        out = model.generate(**inputs, **options, streamer=streamer)
        return out[0, inputs["input_ids"].shape[1] :].tolist(), None

    def ours(own, tree):
        def run(inputs, options, streamer):
            out = generate(model, own, **inputs, **options, tree=tree, seed=0, streamer=streamer)
            return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), out.stats

        return run

    trees = {tree: ours(drafter, tree) for tree in (*TREES, "auto")}
    greedy = {"transformers": theirs, "plain": ours(None, None), **trees}
    sampled = {"plain": ours(None, None), **trees}
    return [(0.0, name, run) for name, run in greedy.items()] + [(1.0, name, run) for name, run in sampled.items()]


def measure(drafter: str, prompts: int, clips: int, new: int) -> dict[str, object]:
    """One row per prompt: by temperature and system, tokens per second, emitted tokens and rounds."""
    place = fetch()
    model, tokenizer = load_target(place, "float32", torch.device("cpu"), False)
    settings, own = load_settings(place), load_drafter(drafter, model)
    asked = [("text", prompt, prepare(settings, tokenizer, prompt, [])) for prompt in instructions("test", prompts)]
    seen = [question(settings, tokenizer, CLIP_TOKENS, i, split="test") for i in range(clips)]
    asked += [("clip", one.clip.prompt, one.inputs) for one in seen]
    rows: list[dict[str, object]] = []
    with Progress("decoding", len(asked), "prompts") as progress:
        for kind, prompt, made_of in asked:
            inputs = Target(model).inputs(made_of)
            row: dict[str, object] = {"kind": kind, "prompt": prompt}
            texts: dict[float, list[int]] = {}
            for temperature, name, run in runs_of(model, own):
                stamps = Stamps(time.process_time)
                tokens, stats = run(inputs, sampling(temperature, new), stamps)
                if tokens != texts.setdefault(temperature, tokens):
                    raise AssertionError(f"{prompt!r} at T = {temperature:g}, {name}: the texts differ")
                made = {} if stats is None else {"emitted": sum(stats.emitted), "rounds": stats.rounds}
                row[f"{name}, T = {temperature:g}"] = {"rate": stamps.rate, **made}
            rows.append(row | {"tokens": len(texts[0.0])})
            progress.advance()
    return {"new_tokens": new, "rows": rows}


def table(result: dict) -> str:
    """tau, with its 95 % interval over prompts, and speed over transformers' generate and over plain decoding."""
    lines = [
        "| prompts | T | tree | tau | speed / transformers (worst) | speed / plain (worst) |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ("text", "clip"):
        rows = [row for row in result["rows"] if row["kind"] == kind and row["tokens"] > 1]
        measured = [name for name in rows[0] if ", T = " in name and not name.startswith("transformers")]
        for name in [name for name in measured if name != "plain, T = 1"]:  # plain decoding over itself
            tree, t = name.split(", T = ")
            tau = interval([(r[name]["emitted"], r[name]["rounds"]) for r in rows], quotient)
            over = {}
            for other in ("transformers", "plain"):
                known = [r for r in rows if f"{other}, T = {t}" in r and r[name]["rate"]]
                over[other] = [r[name]["rate"] / r[f"{other}, T = {t}"]["rate"] for r in known]
            theirs = f"{sum(x) / len(x):.2f} ({min(x):.2f})" if (x := over["transformers"]) else ""
            plain = f"{sum(x) / len(x):.2f} ({min(x):.2f})" if (x := over["plain"]) else ""
            bounds = f"{tau['value']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}]"
            lines.append(f"| {len(rows)} of {kind} | {t} | {tree} | {bounds} | {theirs} | {plain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {"drafter": str(DRAFTER), "prompts": 60, "clips": 12,
               "new": {"type": int, "default": 64, "help": "tokens at most"}}  # fmt: skip
    program("bench.real_text", __doc__, options, measure, table)
