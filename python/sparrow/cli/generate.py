"""`sparrow generate`: load, prepare, decode with progress, print a summary."""

import argparse
import math
import pathlib
import sys
import time
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from torch import Tensor
from transformers import TextStreamer

import sparrow
from sparrow.cli.loading import load_target, pick_device, pick_drafter, target_folder
from sparrow.decoding.generate import GenerateOutput, generate
from sparrow.files import write_json
from sparrow.targets.adapter import Target
from sparrow.video import load_settings, load_video, prepare

err = Console(stderr=True)


def run(arguments: argparse.Namespace) -> int:
    """Streams the answer to stdout; progress and summary go to stderr."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if arguments.compare and arguments.temperature > 0:
        raise ValueError("--compare is for greedy decoding: transformers samples with noise of its own")
    if arguments.json and not pathlib.Path(arguments.json).absolute().parent.is_dir():
        raise FileNotFoundError(f"--json: no such folder: {pathlib.Path(arguments.json).parent}")
    if arguments.json and pathlib.Path(arguments.json).is_dir():
        raise ValueError(f"--json must be a file, got the folder {arguments.json}")
    options = sampling_options(arguments)
    folder = target_folder(arguments.target)
    for video in arguments.video:
        if not pathlib.Path(video).exists():
            raise FileNotFoundError(f"--video: no such file or folder: {video}")
    with err.status("loading the target"):
        model, tokenizer = load_target(
            folder, arguments.dtype, pick_device(arguments.device), arguments.trust_remote_code
        )
        drafter = pick_drafter(arguments.drafter, model)
    inputs = read_video(folder, tokenizer, arguments, model)
    output = decode(model, drafter, inputs, tokenizer, options, arguments)
    plain = compared = None
    if arguments.compare:
        with err.status("decoding plainly, for comparison"):
            greedy = {k: v for k, v in options.items() if k not in ("do_sample", "seed")}
            compared = sparrow.compare(model, drafter, inputs, tree=arguments.tree if drafter else None, **greedy)
            plain = generate(model, None, **inputs, **options, positions=arguments.positions)
    summarise(output, plain, compared)
    if arguments.json:
        write_json(arguments.json, output.stats.as_dict())
    exact = model.dtype == torch.float32
    return 1 if compared is not None and exact and not compared.lossless else 0


def read_video(folder: pathlib.Path, tokenizer, arguments: argparse.Namespace, model) -> dict[str, Any]:
    """Decodes the videos and builds the model's inputs, with a progress bar."""
    settings = load_settings(folder)
    columns = (TextColumn("reading the video"), BarColumn(), TextColumn("{task.completed}/{task.total} frames"))
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("frames", total=None)
        clips = [
            load_video(
                video, settings, num_frames=arguments.num_frames, fps=arguments.fps, on_damage=arguments.on_damage,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
            for video in arguments.video
        ]  # fmt: skip
    for video, (_, info) in zip(arguments.video, clips, strict=True):
        for text in info.skipped:
            print(f"sparrow: {video}: skipped: {text}", file=sys.stderr)
    return Target(model).inputs(prepare(settings, tokenizer, arguments.prompt, clips))


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """generate()'s options from the command line."""
    if not 0 <= arguments.temperature < math.inf:
        raise ValueError(f"--temperature must be at least 0 and finite, got {arguments.temperature}")
    if arguments.top_k < 0:
        raise ValueError(f"--top-k must be at least 0 (0 = off), got {arguments.top_k}")
    if not 0 <= arguments.top_p <= 1:
        raise ValueError(f"--top-p must lie in [0, 1], got {arguments.top_p}")
    if not -(2**63) <= arguments.seed < 2**63:
        raise ValueError(f"--seed must be an integer of 64 bits, got {arguments.seed}")
    if arguments.temperature == 0 and (arguments.top_k, arguments.top_p) != (0, 1.0):
        raise ValueError("--top-k and --top-p need --temperature above 0: greedy decoding draws nothing")
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    if arguments.repetition_penalty is not None:
        options["repetition_penalty"] = arguments.repetition_penalty
    if arguments.temperature > 0:
        options |= {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}
        options["seed"] = arguments.seed
    return options


class _Prefill:
    """Shows that the prompt is running until the first token comes, then streams text."""

    def __init__(self, tokenizer, prompt_tokens: int):
        self.text = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.status = err.status(f"prefill of {prompt_tokens} tokens")
        self.puts = 0

    def put(self, value: Tensor) -> None:
        if self.puts == 0:
            self.status.start()
        elif self.puts == 1:
            self.status.stop()
        self.puts += 1
        self.text.put(value)

    def end(self) -> None:
        self.status.stop()
        self.text.end()


def decode(model, drafter, inputs, tokenizer, options, arguments) -> GenerateOutput:
    """One streamed generation."""
    streamer = _Prefill(tokenizer, inputs["input_ids"].shape[1])
    tree = arguments.tree if drafter is not None else None
    start = time.perf_counter()
    try:
        return generate(
            model, drafter, **inputs, **options, tree=tree, positions=arguments.positions, streamer=streamer
        )
    finally:
        streamer.status.stop()
        err.print(f"[dim]{time.perf_counter() - start:.1f} s[/dim]")


def summarise(output: GenerateOutput, plain: GenerateOutput | None, compared) -> None:
    """The table after an answer."""
    s = output.stats
    table = Table("figure", "value", title="sparrow", title_justify="left")
    table.add_row("prompt", f"{s.prompt_tokens} tokens, {s.visual_tokens} of them visual")
    table.add_row("new tokens", f"{s.new_tokens} in {s.rounds} rounds, tree {s.tree}")
    if s.rounds:  # a single token comes from the prefill alone
        table.add_row("tau (tokens per round, bonus included)", f"{s.tau:.2f}")
        table.add_row("decode", f"{s.decode_tokens_per_second:.1f} tokens/s")
    table.add_row("end to end", f"{s.tokens_per_second:.1f} tokens/s, prefill {s.seconds['prefill']:.2f} s")
    if s.decode_seconds:
        shares = ", ".join(f"{k} {v / s.decode_seconds:.0%}" for k, v in s.seconds.items() if k != "prefill")
        table.add_row("decode time", shares)
    table.add_row("peak memory", f"{s.peak_memory_bytes / 2**30:.2f} GiB")
    if compared is not None and plain is not None:
        theirs = compared.reference_seconds
        table.add_row(
            "end-to-end speed-up over transformers' generate, one run each",
            f"{theirs / compared.output.stats.total_seconds:.2f}x",
        )
        if s.rounds:
            faster = s.decode_tokens_per_second / plain.stats.decode_tokens_per_second
            table.add_row("decode speed-up over our own plain loop", f"{faster:.2f}x")
    err.print(table)
    if compared is not None:
        verdict, _, details = compared.summary().partition(": ")
        print(f"{verdict} to plain decoding: {details}")
