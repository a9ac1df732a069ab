"""`sparrow analyse`: layer by layer, how far text rows have settled and what they still take from the video."""

import functools
import importlib.util
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import torch

from sparrow.cli.analyse_arguments import Analyse
from sparrow.cli.loading import load_target, pick_device, quiet
from sparrow.cli.places import target_folder
from sparrow.cli.tables import print_markdown
from sparrow.decoding.generate import generate
from sparrow.evaluation.hidden import profile, rows_of
from sparrow.evaluation.questions import form_of, question
from sparrow.evaluation.report.render import render
from sparrow.evaluation.tape import model_hash
from sparrow.files import lock, write_json, write_text
from sparrow.miniature.layer_cut import layer_cut
from sparrow.miniature.shipped import pair
from sparrow.progress import Progress
from sparrow.provenance import provenance
from sparrow.targets.adapter import Target
from sparrow.video import VideoError, load_settings, load_video, prepare


def run(arguments: Analyse) -> int:
    """Writes hidden.json, hidden.md and hidden.png."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("sparrow analyse draws with matplotlib: pip install 'sparrow-decoding[train]'")
    quiet()
    device = pick_device(arguments.device)
    if not arguments.video:
        form_of(arguments.length, 0)
    folder = target_folder(arguments.target) if arguments.target else pair()[0]
    model, tokenizer = load_target(folder, arguments.dtype, device, arguments.trust_remote_code)
    target = Target(model)
    prompts = list(inputs_of(arguments, load_settings(folder), tokenizer))
    made = provenance("sparrow " + shlex.join(sys.argv[1:]))
    cut = functools.partial(layer_cut, model)
    passes, sums, answers = target.num_layers + 3, [], []
    with Progress("analysing", passes * len(prompts), "passes") as progress:
        for _, inputs in prompts:
            own = target.inputs(inputs)
            out = generate(model, None, **own, do_sample=False, max_new_tokens=arguments.max_new_tokens)
            progress.advance()
            answers.append(out.sequences[0, own["input_ids"].shape[1] :])
            sums.append(profile(target, own, answers[-1], cut, progress.advance))
    right, of = (sum(clip[-1]["reproduced"][at] for clip in sums) for at in (0, 1))
    settings: dict[str, Any] = {
        "table": "hidden", "target": target.family, "weights": model_hash(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "clips": [name for name, _ in prompts],
        "prompt_tokens": [inputs["input_ids"].shape[1] for _, inputs in prompts],
        "visual_tokens": [int((~target.is_text(inputs["input_ids"].to(device))).sum()) for _, inputs in prompts],
        "answer_tokens": [len(answer) for answer in answers], "reproduced": right / of,
    }  # fmt: skip
    file = pathlib.Path(arguments.out) / "hidden.json"
    result = {"provenance": made, "settings": settings, "rows": rows_of(sums)}
    with lock(file):
        write_json(file, result, indent=1)
        text = render(result, file.parent)
        write_text(file.with_suffix(".md"), text)
    print_markdown(text)
    print(f"{file}, and hidden.md and hidden.png beside it")
    return 0


def inputs_of(arguments: Analyse, settings: Any, tokenizer: Any) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Names and inputs of what is asked: one's own videos, each with the prompt, or clips of the synthetic world."""
    for video in arguments.video:
        try:
            clip = load_video(video, settings, num_frames=arguments.num_frames)
        except (FileNotFoundError, VideoError) as error:
            raise type(error)(f"--video: {error}") from None
        yield pathlib.Path(video).name, prepare(settings, tokenizer, arguments.prompt or "", [clip])
    for number in range(0 if arguments.video else arguments.clips):
        asked = question(settings, tokenizer, arguments.length, number, split="test")
        yield f"test {number}, {arguments.length} visual tokens", asked.inputs
