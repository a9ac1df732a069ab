"""`sparrow generate`: prepare, load, decode with progress, print a summary."""

import contextlib
import pathlib
import shlex
import sys
from typing import Any

import torch
from rich.table import Table

from sparrow.cli import measure
from sparrow.cli.decoding_arguments import Chat, Generate
from sparrow.cli.loading import bind, load_model, load_tokenizer, pick_device, quiet, read_drafter
from sparrow.cli.page import Clip, Shown, check_place, write_page
from sparrow.cli.places import target_folder
from sparrow.cli.stream import LEGEND, Stream, both
from sparrow.decoding.compare import compare
from sparrow.decoding.generate import GenerateOutput, generate
from sparrow.drafters.recorded import Recorder
from sparrow.drafters.specvlm import SpecVLM
from sparrow.evaluation.systems import PLAIN, SPECVLM, TRANSFORMERS, Run, System
from sparrow.files import write_json
from sparrow.progress import Progress, console
from sparrow.targets.adapter import Target
from sparrow.targets.positions import prompt_positions
from sparrow.video import VideoError, load_settings, load_video, prepare, read_image


def run(arguments: Generate) -> int:
    """Streams the answer to stdout; progress and summary go to stderr. The weights come last: all else may be wrong."""
    quiet()
    check_place("--json", arguments.json)
    check_place("--report", arguments.report)
    device = pick_device(arguments.device)
    folder = target_folder(arguments.target)
    tokenizer = load_tokenizer(folder, arguments.trust_remote_code)
    drafter = read_drafter(arguments.drafter, folder)
    images = [read_image(image, "--image") for image in arguments.image]
    clips = read_video(folder, arguments)
    inputs = prepare(load_settings(folder), tokenizer, arguments.prompt, clips, images=images)
    model = load_model(folder, arguments.dtype, device, arguments.trust_remote_code)
    bind(drafter, model)
    inputs = Target(model).inputs(inputs)
    options = sampling_options(arguments)
    recorder = Recorder(drafter) if arguments.report else None
    output = decode(model, drafter, inputs, tokenizer, options, arguments, recorder)
    summarise(output)
    if (layer := arguments.visual_drop_layer) is not None:
        print(f"sparrow: LOSSY: visual tokens were dropped from layer {layer} on", file=sys.stderr)
    code, runs = side_by_side(model, drafter, inputs, options, output, arguments) if arguments.compare else (0, {})
    if arguments.json:
        write_json(arguments.json, output.stats.as_dict())
    if recorder is not None:
        report(arguments, model, tokenizer, drafter, images, clips, output, recorder, runs)
    return code


def read_video(folder: pathlib.Path, arguments: Generate) -> list[Clip]:
    """Decodes the videos."""
    settings = load_settings(folder)
    with Progress("reading the video", unit="frames", quiet=not arguments.video) as progress:
        try:
            clips = [
                load_video(
                    video, settings, num_frames=arguments.num_frames, fps=arguments.fps, on_damage=arguments.on_damage,
                    progress=progress.update,
                )
                for video in arguments.video
            ]  # fmt: skip
        except (FileNotFoundError, VideoError) as error:
            raise type(error)(f"--video: {error}") from None
    for video, (_, info) in zip(arguments.video, clips, strict=True):
        for text in info.skipped:
            print(f"sparrow: {video}: skipped: {text}", file=sys.stderr)
    return clips


def sampling_options(arguments: Generate | Chat) -> dict[str, Any]:
    """generate()'s options from the command line; its noise is the seed's alone."""
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    if arguments.repetition_penalty is not None:
        options["repetition_penalty"] = arguments.repetition_penalty
    if arguments.temperature > 0:
        options |= {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}
    return options


def decode(
    model, drafter, inputs, tokenizer, options, arguments: Generate, recorder: Recorder | None
) -> GenerateOutput:
    """One streamed generation, which the recorder records, if there is one."""
    prompt, chunk = inputs["input_ids"].shape[1], arguments.prefill_chunk
    pieces = -(-prompt // (chunk or prompt))
    stream = Stream(tokenizer, model, prompt, arguments.max_new_tokens, drafter is not None, pieces)
    on_round = both(stream.on_round, recorder.on_round if recorder else None)
    with contextlib.closing(stream):
        output = generate(
            model, recorder or drafter, **inputs, **options, tree=arguments.tree, seed=arguments.seed,
            positions=arguments.positions, streamer=stream, on_round=on_round, prefill_chunk_size=chunk,
            visual_drop_layer=arguments.visual_drop_layer,
        )  # fmt: skip
    if stream.colour:
        print(LEGEND)
    return output


def summarise(output: GenerateOutput) -> None:
    """The table after an answer."""
    s = output.stats
    table = Table("figure", "value", title="sparrow", title_justify="left")
    table.add_row("prompt", f"{s.prompt_tokens} tokens, {s.visual_tokens} of them visual")
    table.add_row("new tokens", f"{s.new_tokens} in {s.rounds} rounds, tree {s.tree}")
    if s.trees:
        used = sorted(s.trees.items(), key=lambda tree: -tree[1])
        table.add_row("trees, rounds of each", ", ".join(f"{tree} {rounds}" for tree, rounds in used))
    if s.rounds:  # a single token comes from the prefill alone
        table.add_row("tau (tokens per round)", f"{s.tau:.2f}")
        table.add_row("decode", f"{s.decode_tokens_per_second:.1f} tokens/s")
    table.add_row("end to end", f"{s.tokens_per_second:.1f} tokens/s, prefill {s.seconds['prefill']:.2f} s")
    if s.decode_seconds:
        shares = ", ".join(f"{k} {v / s.decode_seconds:.0%}" for k, v in s.seconds.items() if k != "prefill")
        table.add_row("decode time", shares)
    table.add_row("peak memory", f"{s.peak_memory_bytes / 2**30:.2f} GiB")
    console.print(table)


def report(
    arguments: Generate, model, tokenizer, drafter, images: list[Any], clips: list[Clip], output: GenerateOutput,
    recorder: Recorder, runs: measure.Runs,
) -> None:  # fmt: skip
    """Writes the page. runs: what --compare measured."""
    lane = "plain" if drafter is None else "SpecVLM" if isinstance(drafter, SpecVLM) else "sparrow"
    ours = output.sequences[0, output.stats.prompt_tokens :].tolist()
    verdict = measure.verdict(ours, runs) if runs else ""
    why = "--compare is for greedy decoding" if arguments.temperature > 0 else "--compare measures it"
    names = [[_name_of(source) for source in given] for given in (arguments.video, arguments.image)]
    made = {
        "target": arguments.target, "drafter": arguments.drafter or "none", "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."), "temperature": f"{arguments.temperature:g}",
    }  # fmt: skip
    if arguments.temperature > 0:
        made["seed"] = str(arguments.seed)
    if arguments.visual_drop_layer is not None:
        made["LOSSY"] = f"visual tokens dropped from layer {arguments.visual_drop_layer} on"
    shown = Shown(
        arguments.prompt, list(zip(names[0], clips, strict=True)), output, recorder, lane, runs, why, verdict, made,
        list(zip(names[1], images, strict=True)),
    )  # fmt: skip
    assert arguments.report is not None
    write_page(arguments.report, shown, tokenizer, shlex.join(["sparrow", *sys.argv[1:]]))
    print(f"report: {arguments.report}", file=sys.stderr)


def _name_of(source: str) -> str:
    """Of a file its name; an address that holds its own data has none."""
    return "data address" if source.lower().startswith("data:") else pathlib.Path(source).name


def side_by_side(
    model, drafter, inputs, options, output: GenerateOutput, arguments: Generate
) -> tuple[int, measure.Runs]:
    """Measures the systems in turns. Exit code 1 where float32 outputs differ, and by more than near ties."""
    systems = [TRANSFORMERS, PLAIN]
    if isinstance(drafter, SpecVLM):
        systems.append(SPECVLM)
    elif drafter is not None:
        systems.append(System("sparrow", "sparrow", arguments.drafter, output.stats.tree))
    ids = prompt_positions(Target(model), dict(inputs), arguments.positions)
    numbered = inputs if ids is None else inputs | {"position_ids": ids}
    runs = measure.measure(systems, model, drafter, numbered, options)
    console.print(measure.table(runs))
    ours = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    runs["streamed"] = [Run(ours, 0, 0, 0, [])]
    line = measure.verdict(ours, runs)
    if measure.same(runs):
        print(line)
        return 0, runs
    compared = compare(model, drafter, **inputs, **options, tree=arguments.tree, positions=arguments.positions)
    print(f"{line}\n{compared.report()}")
    return (1 if model.dtype == torch.float32 and (compared.identical or not compared.lossless) else 0), runs
