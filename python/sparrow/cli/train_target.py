"""`sparrow train target`: the miniature target from nothing, as a checkpoint folder transformers can load."""

import pathlib

import torch
import transformers

from sparrow.cli.loading import quiet
from sparrow.cli.train_arguments import TrainTarget
from sparrow.files import replacing
from sparrow.miniature.batches import Collator
from sparrow.miniature.model import SETTINGS, MiniatureSize, build_miniature, miniature_tokenizer, trainable
from sparrow.miniature.recipe import TargetRecipe
from sparrow.miniature.training import train_target
from sparrow.miniature.world import vocabulary_texts
from sparrow.training.config import load_config
from sparrow.training.run import Run
from sparrow.video import save_settings


def run(arguments: TrainTarget) -> int:
    """Trains in folder --out and writes the checkpoint to its subfolder "target"."""
    quiet()
    torch.set_num_threads(1)  # matrices this small do not share well
    recipe = load_config(TargetRecipe, arguments.config, arguments.overrides)
    folder = pathlib.Path(arguments.out)
    tokenizer = miniature_tokenizer(vocabulary_texts())
    model = build_miniature(tokenizer, MiniatureSize(), recipe.seed)
    with trainable(model):
        train_target(model, Collator(model, tokenizer, SETTINGS), recipe, Run(folder, recipe), print)
    export(model, tokenizer, folder / "target")
    print(f"the target is in {folder / 'target'}")
    return 0


def export(model: transformers.PreTrainedModel, tokenizer, folder: pathlib.Path) -> None:
    """Weights in bfloat16, config, tokenizer, chat template and preprocessing settings."""
    with replacing(folder) as new:
        model.to(torch.bfloat16).save_pretrained(new)
        tokenizer.save_pretrained(new)
        save_settings(SETTINGS, new)
