"""Both targets with their drafters, and what they are asked: for programs that measure on recorded runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from bench.real_text import DRAFTER
from sparrow.cli.loading import load_drafter, load_target
from sparrow.drafters.network import SparrowDrafter
from sparrow.evaluation.questions import question
from sparrow.miniature.shipped import drafter_folder, pair
from sparrow.smollm2.fetch import fetch
from sparrow.smollm2.prompts import prompts as instructions
from sparrow.targets.adapter import Target
from sparrow.video import load_settings, prepare

RANDOM = "random"  # a drafter with random weights, whose drafts are worth nothing
Asked = dict[str, list[dict[str, Any]]]  # the model's inputs by kind: "text", "clips of 64"


def pairs(
    split: str, prompts: int, clips: int, lengths: Mapping[str, Sequence[int]], names: Sequence[str]
) -> Iterator[tuple[str, Any, dict[str, SparrowDrafter], Asked]]:
    """Name of the target, the model, its drafters by name, and what it is asked.

    Args:
        split: of the prompts; prompts: instructions, for SmolLM2 alone; clips: of each length.
        lengths: of clips, in visual tokens, by target.
        names: of the miniature's drafters; SmolLM2 has its own.
    """
    for name, place in (("SmolLM2", fetch()), ("miniature", pair()[0])):
        model, tokenizer = load_target(place, "float32", torch.device("cpu"), False)
        settings, to, asked = load_settings(place), Target(model).inputs, Asked()
        if name == "SmolLM2":
            drafters = {"its own": load_drafter(DRAFTER, model)}
            asked["text"] = [to(prepare(settings, tokenizer, one, [])) for one in instructions(split, prompts)]
        else:
            drafters = {one: drafter_called(one, model) for one in names}
        for length in lengths[name]:
            made = [question(settings, tokenizer, length, i, split=split) for i in range(clips)]
            asked[f"clips of {length}"] = [to(one.inputs) for one in made]
        yield name, model, drafters, asked


def drafter_called(name: str, model: Any) -> SparrowDrafter:
    """One of the miniature's."""
    return SparrowDrafter.from_target(Target(model)) if name == RANDOM else load_drafter(drafter_folder(name), model)
