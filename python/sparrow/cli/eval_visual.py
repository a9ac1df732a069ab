"""The tables watch and layer_cut of `sparrow eval`: whether the target watches, and where it takes the video in."""

import functools
import itertools
import pathlib
from typing import Any

from sparrow.cli.arguments import Eval
from sparrow.evaluation.evaluate import started
from sparrow.evaluation.tables import Table
from sparrow.evaluation.tape import model_hash
from sparrow.evaluation.visual import layer_cuts, watching
from sparrow.files import write_json
from sparrow.miniature.batches import Collator
from sparrow.miniature.layer_cut import layer_cut
from sparrow.miniature.model import trainable
from sparrow.miniature.training import Forward
from sparrow.progress import Progress


def measure(
    table: Table, file: pathlib.Path, made: dict[str, Any], target: tuple[Any, Any, Any], arguments: Eval
) -> None:  # fmt: skip
    """Writes the file; where it is there, with the same settings, nothing is measured again.

    Args:
        made: provenance; target: (settings, model, tokenizer).
    """
    frames, model, tokenizer = target
    settings: dict[str, Any] = {
        "table": table.name, "target": model_hash(model), "dtype": arguments.dtype, "split": arguments.split,
        "lengths": list(table.lengths), "clips": arguments.clips or table.clips,
    }  # fmt: skip
    result = started(file, settings, made, {"rows": []})
    if result["rows"]:
        return
    layers = int(model.config.get_text_config().num_hidden_layers)
    steps, done = 3 * len(table.lengths) if table.name == "watch" else layers + 1, itertools.count()
    with trainable(model), Progress(table.name, steps, "steps") as progress:

        def tell(text: str) -> None:
            progress.update(completed=next(done), text=f"{table.name}: {text}")

        collator, forward = Collator(model, tokenizer, frames), Forward(model, bf16=False)
        if table.name == "watch":
            rows = watching(collator, forward, table.lengths, settings["split"], settings["clips"], tell)
        else:
            cut = functools.partial(layer_cut, model)
            at = (table.lengths[0], settings["split"], settings["clips"])
            rows = layer_cuts(collator, forward, cut, layers, *at, tell)
    write_json(file, result | {"rows": rows}, indent=1)
