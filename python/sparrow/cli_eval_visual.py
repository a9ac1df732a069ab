"""`sparrow eval --watch` and `--layer-cut`: whether the target watches, and where it takes the video in."""

import argparse
import functools
import pathlib
import shlex
import sys
from typing import Any

import torch
import transformers

from sparrow import cli_eval
from sparrow.evaluation.evaluate import save_json
from sparrow.evaluation.tape import model_hash
from sparrow.evaluation.visual import layer_cuts, layer_plot, layer_table, watching, watching_table
from sparrow.provenance import provenance
from sparrow.synthetic import FORMATS
from sparrow.targets.layer_cut import layer_cut
from sparrow.targets.miniature import trainable
from sparrow.training.target import Collator, Forward

WATCH_LENGTHS, CUT_LENGTH, CLIPS = tuple(n for n in FORMATS if n <= 4096), 256, 64


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes the JSON, renders it."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    kind = "watch" if arguments.watch else "layer-cut"
    lengths = arguments.lengths or (WATCH_LENGTHS if arguments.watch else (CUT_LENGTH,))
    if kind == "layer-cut" and len(lengths) > 1:
        raise ValueError(f"--layer-cut takes one of --lengths, got {len(lengths)}")
    frames, model, tokenizer = cli_eval.target(arguments)
    settings: dict[str, Any] = {
        "target": model_hash(model), "dtype": arguments.dtype, "split": arguments.split, "lengths": list(lengths),
        "clips": arguments.clips or CLIPS,
    }  # fmt: skip
    with cli_eval.progress() as bar, trainable(model):
        layers = int(model.config.get_text_config().num_hidden_layers)
        task = bar.add_task("", total=3 * len(lengths) if kind == "watch" else layers + 1)
        tell = lambda text: bar.update(task, description=text, advance=1)  # noqa: E731
        collator, forward = Collator(model, tokenizer, frames), Forward(model, bf16=False)
        if kind == "watch":
            rows = watching(collator, forward, lengths, settings["split"], settings["clips"], tell)
        else:
            cut = functools.partial(layer_cut, model)
            rows = layer_cuts(collator, forward, cut, layers, lengths[0], settings["split"], settings["clips"], tell)
    out = pathlib.Path(arguments.out or f"sparrow_{kind}.json")
    made = provenance("sparrow " + shlex.join(sys.argv[1:]))
    save_json(out, {"kind": kind, "provenance": [made], "settings": settings, "rows": rows})
    return cli_eval.render(out)


def render(result: dict[str, Any], file: pathlib.Path) -> str:
    """The table; for the layers also the picture, beside the JSON."""
    if result["kind"] == "watch":
        return watching_table(result["rows"])
    layer_plot(result["rows"], file.with_suffix(".png"))
    return layer_table(result["rows"])
