"""The tables watch and layer_cut of `sparrow eval`: whether the target watches, and where it takes the video in."""

import argparse
import functools
import pathlib
from typing import Any

from sparrow.evaluation.evaluate import started
from sparrow.evaluation.tables import Table
from sparrow.evaluation.tape import model_hash
from sparrow.evaluation.visual import layer_cuts, watching
from sparrow.files import write_json
from sparrow.miniature.batches import Collator
from sparrow.miniature.layer_cut import layer_cut
from sparrow.miniature.model import trainable
from sparrow.miniature.training import Forward


def measure(
    table: Table, file: pathlib.Path, made: dict[str, Any], target: tuple[Any, Any, Any], arguments: argparse.Namespace,
    bar: Any,
) -> None:  # fmt: skip
    """Writes the file; where it is there, with the same settings, nothing is measured again.

    Args:
        made: provenance; target: (settings, model, tokenizer); bar: rich's progress.
    """
    frames, model, tokenizer = target
    if table.name == "layer_cut" and len(table.lengths) > 1:
        raise ValueError(f"table layer_cut takes one of --lengths, got {len(table.lengths)}")
    settings: dict[str, Any] = {
        "table": table.name, "target": model_hash(model), "dtype": arguments.dtype, "split": arguments.split,
        "lengths": list(table.lengths), "clips": arguments.clips or table.clips,
    }  # fmt: skip
    result = started(file, settings, made, {"rows": []})
    if result["rows"]:
        return
    layers = int(model.config.get_text_config().num_hidden_layers)
    task = bar.add_task("", total=3 * len(table.lengths) if table.name == "watch" else layers + 1)
    tell = lambda text: bar.update(task, description=f"{table.name}: {text}", advance=1)  # noqa: E731
    with trainable(model):
        collator, forward = Collator(model, tokenizer, frames), Forward(model, bf16=False)
        if table.name == "watch":
            rows = watching(collator, forward, table.lengths, settings["split"], settings["clips"], tell)
        else:
            cut = functools.partial(layer_cut, model)
            at = (table.lengths[0], settings["split"], settings["clips"])
            rows = layer_cuts(collator, forward, cut, layers, *at, tell)
    write_json(file, result | {"rows": rows}, indent=1)
