"""Answers per minute of `sparrow train answers`: by a token budget, one by one, and in batches of one length.

    python -m bench.answers --save bench/results/answers.json
    python -m bench.answers --table bench/results/answers.json

SmolLM2 answers instructions of the training split, greedy, on one CPU thread. "one length": transformers' generate over
batches of prompts of equal length, as the stage worked before it padded; 32 prompts wait for others of their length.
The three take turns; times are this process' CPU seconds, and each answer is compared with that of the prompt alone.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from bench.measured import program
from sparrow.cli.loading import load_target
from sparrow.progress import Progress
from sparrow.smollm2.fetch import fetch
from sparrow.smollm2.prompts import prompts as instructions
from sparrow.targets.adapter import Target
from sparrow.training.asking import Asked, replies, until_end
from sparrow.training.recipe import Answers
from sparrow.video import load_settings, prepare

Found = Iterator[tuple[int, list[int]]]
WAITING = 32


def by_length(target: Target, asked: list[Asked], config: Answers) -> Found:
    """Batches of one length by transformers' generate; of WAITING prompts the largest group goes."""
    waiting: list[Asked] = []
    ends = {target.model.generation_config.eos_token_id}
    todo = list(asked)
    while todo or waiting:
        waiting, todo = waiting + todo[: WAITING - len(waiting)], todo[WAITING - len(waiting) :]
        lengths = [one.length for one in waiting]
        length = max(lengths, key=lengths.count)
        group = [one for one in waiting if one.length == length][: config.batch]
        waiting = [one for one in waiting if one not in group]
        inputs = {name: torch.cat([one.inputs[name] for one in group]) for name in ("input_ids", "attention_mask")}
        out = target.model.generate(**inputs, do_sample=False, max_new_tokens=config.max_new_tokens)
        for one, row in zip(group, out[:, length:].tolist(), strict=True):
            yield one.clip, until_end(row, ends)


def by_budget(target: Target, asked: list[Asked], config: Answers) -> Found:
    """What the stage does."""
    for made in replies(target, config, "hf", asked):
        yield from ((reply.asked.clip, reply.ids) for reply in made)


def measure(prompts: int, new: int, batch: int, turns: int) -> dict[str, object]:
    """CPU seconds of each way, by turn, and how many answers are those of the prompt alone."""
    place = fetch()
    model, tokenizer = load_target(place, "float32", torch.device("cpu"), False)
    target, settings = Target(model), load_settings(place)
    asked = [
        Asked(i, (0.0,), prepare(settings, tokenizer, text, []))
        for i, text in enumerate(instructions("train", prompts))
    ]
    ways: dict[str, tuple[Callable[[Target, list[Asked], Answers], Found], Answers]] = {
        "one by one": (by_budget, Answers(max_new_tokens=new, batch=1)),
        "one length": (by_length, Answers(max_new_tokens=new, batch=batch)),
        "token budget": (by_budget, Answers(max_new_tokens=new, batch=batch)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, dict[int, list[int]]] = {}
    with Progress("answering", turns * len(ways), "turns") as progress, torch.no_grad():
        for _ in range(turns):
            for name, (way, config) in ways.items():
                begun = time.process_time()
                texts[name] = dict(way(target, asked, config))
                seconds[name].append(time.process_time() - begun)
                progress.advance()
    alone = texts["one by one"]
    same = {name: sum(found[i] == ids for i, ids in alone.items()) for name, found in texts.items()}
    tokens = sum(map(len, alone.values()))
    return {"prompts": prompts, "new_tokens": new, "batch": batch, "tokens": tokens, "seconds": seconds, "same": same,
            "lengths": [one.length for one in asked]}  # fmt: skip


def table(result: dict) -> str:
    """Answers and tokens per CPU minute, medians of the turns."""
    lines = ["| batches | answers per CPU minute | tokens per CPU second | answers of the prompt alone |",
             "|---|---|---|---|"]  # fmt: skip
    for name, times in result["seconds"].items():
        took = statistics.median(times)
        rate, speed = 60 * result["prompts"] / took, result["tokens"] / took
        lines.append(f"| {name} | {rate:.0f} | {speed:.0f} | {result['same'][name]} of {result['prompts']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {"prompts": 96, "new": {"type": int, "default": 64, "help": "tokens at most"}, "batch": 16, "turns": 3}
    program("bench.answers", __doc__, options, measure, table)
