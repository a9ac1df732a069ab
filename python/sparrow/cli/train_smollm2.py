"""`sparrow train smollm2`: SmolLM2 learns to watch; the result is one file of tower and adapters."""

import pathlib

import torch

from sparrow.cli.loading import quiet
from sparrow.cli.train_arguments import TrainSmolLM2
from sparrow.files import write_json, write_tensors
from sparrow.miniature.batches import Collator
from sparrow.miniature.model import SETTINGS, trainable
from sparrow.provenance import provenance
from sparrow.smollm2 import convert, host, package
from sparrow.smollm2.recipe import SmolRecipe
from sparrow.smollm2.training import Teacher
from sparrow.training.config import load_config
from sparrow.training.run import Run


def run(arguments: TrainSmolLM2) -> int:
    """Trains in folder --out, which gets taught.safetensors and training.json."""
    quiet()
    torch.set_num_threads(1)
    recipe = load_config(SmolRecipe, arguments.config, arguments.overrides)
    folder = pathlib.Path(arguments.out)
    language = convert.read(package.gguf(package.cache_folder()))
    model, training = host.build(language), Run(folder, recipe)
    with trainable(model):
        teacher = Teacher(model, Collator(model, language.tokenizer, SETTINGS), recipe, training, print)
        teacher.train()
    write_tensors(folder / "taught.safetensors", teacher.taught())
    write_json(folder / "training.json", {"settings": training.settings, **provenance("sparrow train smollm2")})
    print(f"tower and adapters are in {folder / 'taught.safetensors'}: sparrow fetch smollm2 --taught THAT")
    return 0
