"""`sparrow demo`: the shipped pair describes the shipped clip; speed and identity beside plain decoding."""

import contextlib

import torch
from rich.console import Console

from sparrow.cli import measure
from sparrow.cli.arguments import Demo
from sparrow.cli.loading import load_drafter, load_target, quiet
from sparrow.cli.page import Shown, check_place, write_page
from sparrow.cli.stream import LEGEND, Stream, both
from sparrow.decoding.generate import generate
from sparrow.drafters.recorded import Recorder
from sparrow.evaluation.questions import sampling
from sparrow.evaluation.systems import PLAIN, TRANSFORMERS, Run, System
from sparrow.miniature.shipped import DEMO, pair
from sparrow.targets.adapter import Target
from sparrow.video import load_settings, load_video, prepare

PROMPT = "Describe the video in detail."
ABOUT = """The model is a miniature: 3.9 million parameters, trained on synthetic clips.
It errs in what it sees, and that does not matter here. The point is that its
words come sooner, and are the same as without a drafter, to the last one."""


def run(arguments: Demo) -> int:
    """Streams the description, then measures. Exit code 1 where any output differs from transformers' generate."""
    quiet()
    check_place("--report", arguments.report)
    torch.set_num_threads(1)  # the matrices are too small to share
    target, drafter_folder = pair(arguments.folder) if arguments.folder else pair()
    model, tokenizer = load_target(target, "float32", torch.device("cpu"), False)
    drafter = load_drafter(str(drafter_folder), model)
    clip = load_video(DEMO, settings := load_settings(target))
    inputs = Target(model).inputs(prepare(settings, tokenizer, PROMPT, [clip]))
    options = sampling(0.0, arguments.max_new_tokens)
    print(f"{DEMO.name}, {int((inputs['input_ids'] == model.config.video_token_id).sum())} visual tokens. {PROMPT}\n")
    stream = Stream(tokenizer, model, inputs["input_ids"].shape[1], arguments.max_new_tokens, rounds=True)
    recorder = Recorder(drafter)
    with contextlib.closing(stream):
        out = generate(
            model,
            recorder,
            **inputs,
            **options,
            tree=arguments.tree,
            streamer=stream,
            on_round=both(stream.on_round, recorder.on_round),
        )
    ours = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if stream.colour:
        print(LEGEND)
    stats = out.stats
    tau = f", tau {stats.tau:.2f} tokens each" if stats.rounds else ""
    passes = f"{stats.rounds} passes of the target after the prompt{tau}, tree {stats.tree}"
    print(f"\n{ABOUT}\n\n{len(ours)} tokens: {passes}")
    sparrow = System("sparrow", "sparrow", str(drafter_folder), stats.tree)
    runs = measure.measure((TRANSFORMERS, PLAIN, sparrow), model, drafter, inputs, options)
    Console().print(measure.table(runs))
    measured, runs = runs, {**runs, "streamed": [Run(ours, 0, 0, 0, [])]}
    print(verdict := measure.verdict(ours, runs))
    if arguments.report:
        made = {"target": "the shipped miniature", "dtype": "float32", "device": "cpu"}
        if arguments.folder:
            made["target"] = str(target)
        shown = Shown(PROMPT, [(DEMO.name, clip)], out, recorder, "sparrow", measured, "", verdict, made)
        write_page(arguments.report, shown, tokenizer, "sparrow demo --report")
        print(f"report: {arguments.report}")
    return 0 if measure.same(runs) else 1
