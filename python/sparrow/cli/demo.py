"""`sparrow demo`: the shipped pair describes the shipped clip; speed and identity beside plain decoding."""

import argparse
import hashlib
import statistics
import sys
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import TextStreamer

from sparrow.cli.loading import load_drafter, load_target
from sparrow.decoding.generate import generate
from sparrow.evaluation.questions import sampling
from sparrow.evaluation.systems import PLAIN, TRANSFORMERS, Run, System
from sparrow.evaluation.systems import run as run_once
from sparrow.miniature.shipped import DEMO, pair
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig
from sparrow.video import load_settings, prepare

PROMPT = "Describe the video in detail."
RUNS = 3
err = Console(stderr=True)


def run(arguments: argparse.Namespace) -> int:
    """Streams the description, then measures. Exit code 1 where any output differs from transformers' generate."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the matrices are too small to share
    target, drafter_folder = pair(arguments.folder) if arguments.folder else pair()
    model, tokenizer = load_target(target, "float32", torch.device("cpu"), False)
    drafter = load_drafter(str(drafter_folder), model)
    tree = arguments.tree or TreeConfig.parse(drafter.config.tree)
    inputs = Target(model).inputs(prepare(load_settings(target), tokenizer, PROMPT, [DEMO]))
    options = sampling(0.0, arguments.max_new_tokens)
    print(f"{DEMO.name}, {int((inputs['input_ids'] == model.config.video_token_id).sum())} visual tokens. {PROMPT}\n")
    out = generate(
        model, drafter, **inputs, **options, tree=tree, streamer=TextStreamer(tokenizer, True, skip_special_tokens=True)
    )
    sparrow = System("sparrow", "sparrow", str(drafter_folder), str(tree))
    systems = (TRANSFORMERS, PLAIN, sparrow)
    with err.status("measuring"):
        runs = measure(systems, model, drafter, inputs, options)
    runs["streamed"] = [Run(out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), 0, 0, 0, [])]
    table(runs, str(tree))
    return verdict(runs)


def measure(systems: tuple[System, ...], model, drafter, inputs: dict[str, Any], options: dict) -> dict[str, list[Run]]:
    """RUNS runs of each, in turns, after one that is not counted."""
    runs: dict[str, list[Run]] = {s.name: [] for s in systems}
    for turn in range(RUNS + 1):
        for system in systems:
            own = drafter if system.kind == "sparrow" else None
            runs[system.name].append(run_once(system, model, own, inputs, options, seed=0))
        if turn == 0:
            for done in runs.values():
                done.clear()
    return runs


def table(runs: dict[str, list[Run]], tree: str) -> None:
    """Medians; speed-ups over transformers' generate and over our own loop without a drafter."""
    decode = {name: statistics.median(r.decode_seconds for r in done) for name, done in runs.items()}
    whole = {name: statistics.median(r.seconds for r in done) for name, done in runs.items()}
    emitted = runs["sparrow"][0].emitted
    new, rounds = len(runs["sparrow"][0].tokens), len(emitted)
    print(
        f"\n{new} tokens; {rounds} rounds after the prefill, tau {sum(emitted) / max(1, rounds):.2f} tokens per round"
    )
    title = f"seconds, median of {RUNS} runs each, one thread, tree {tree}"
    shown = Table("", "sparrow", "transformers", "plain loop", "speed-up", title=title, title_justify="left")
    for what, seconds in (("decoding", decode), ("with the prefill", whole)):
        ours, theirs, plain = seconds["sparrow"], seconds["transformers"], seconds["plain"]
        speed = f"{theirs / ours:.2f}x and {plain / ours:.2f}x"
        shown.add_row(what, f"{ours:.3f}", f"{theirs:.3f}", f"{plain:.3f}", speed)
    Console(file=sys.stdout).print(shown)


def verdict(runs: dict[str, list[Run]]) -> int:
    """Compares the tokens of every run with those of transformers' first; 0 where all are equal."""
    reference = runs["transformers"][0].tokens
    same = all(r.tokens == reference for done in runs.values() for r in done)
    ours = runs["sparrow"][0].tokens
    hashes = [hashlib.sha256(str(tokens).encode()).hexdigest()[:16] for tokens in (ours, reference)]
    print(
        f"identical to plain decoding: {'yes' if same else 'no'} (tokens {len(ours)} and {len(reference)}, "
        f"SHA-256 {hashes[0]} and {hashes[1]})"
    )
    return 0 if same else 1
