"""`sparrow train smollm2`: SmolLM2 learns to watch; the result is a file of tower and adapters, and a ready target."""

import argparse
import pathlib

import torch
import transformers
from rich.console import Console

from sparrow.files import write_json, write_tensors
from sparrow.miniature.batches import Collator
from sparrow.miniature.model import SETTINGS, trainable
from sparrow.provenance import provenance
from sparrow.smollm2 import convert, host, package
from sparrow.smollm2.recipe import SmolRecipe
from sparrow.smollm2.training import Teacher
from sparrow.training.config import load_config
from sparrow.training.run import Run

out = Console()


def run(arguments: argparse.Namespace) -> int:
    """Trains in folder --out; OUT/taught.safetensors and OUT/training.json are what bench/smollm2 keeps."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    recipe = load_config(SmolRecipe, arguments.config, arguments.overrides)
    folder = pathlib.Path(arguments.out)
    language = convert.read(package.gguf(package.cache_folder()))
    model = host.build(language)
    training = Run(folder, recipe)
    with trainable(model):
        teacher = Teacher(model, Collator(model, language.tokenizer, SETTINGS), recipe, training, out.print)
        teacher.train()
    write_tensors(folder / "taught.safetensors", teacher.taught())
    write_json(folder / "training.json", {"settings": training.settings, **provenance("sparrow train smollm2")})
    out.print(f"tower and adapters are in {folder / 'taught.safetensors'}")
    return 0
