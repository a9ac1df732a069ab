"""The videos and images of a prompt, one by one: where their tokens lie, and which of the model's inputs are theirs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from sparrow.targets.adapter import Target

# kind -> the input that holds pixels, and those with one row per video or image
INPUTS = {
    "video": ("pixel_values_videos", ("video_grid_thw", "second_per_grid_ts")),
    "image": ("pixel_values", ("image_grid_thw", "image_sizes", "batch_num_images")),
}


@dataclass(frozen=True)
class Visual:
    """One video or image; or all images of a prompt, where they cannot be told apart.

    Attributes:
        first, end: its tokens lie at places [first, end) of the prompt, in some families with text between them.
        inputs: its rows of the model's inputs, by name.
    """

    first: int
    end: int
    inputs: Mapping[str, Tensor]

    def digest(self) -> bytes:
        """A hash of every bit the model gets of it."""
        digest = hashlib.sha256()
        for name, value in sorted(self.inputs.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
        return digest.digest()


def visuals_of(target: Target, ids: Tensor, inputs: Mapping[str, Any]) -> list[Visual] | None:
    """The videos and images of a prompt, by place.

    None where tokens and inputs do not fit together: the model itself says what is wrong.

    Args:
        target: the model's adapter.
        ids: int64 [1, P].
        inputs: what a processor made: pixel_values_videos, video_grid_thw, ...
    """
    found: list[Visual] = []
    for kind, (pixels, beside) in INPUTS.items():
        tokens = torch.tensor(target.placeholders(kind), dtype=torch.int64)
        places = torch.isin(ids[0].cpu(), tokens).nonzero()[:, 0].tolist()
        given = {name: torch.as_tensor(inputs[name]) for name in (pixels, *beside) if inputs.get(name) is not None}
        if not places or pixels not in given:
            if places or pixels in given:
                return None
            continue
        grid = next((value for name, value in given.items() if name.endswith("grid_thw")), None)
        if grid is not None:
            merge = int(target.model.config.vision_config.spatial_merge_size)
            rows = grid.prod(-1).tolist()
            counts = [n // merge**2 for n in rows]
        else:
            rows = [1] * len(given[pixels])
            counts = _counts(places, len(rows), alike=kind == "video")
            if target.family == "internvl":
                counts = [int(target.model.config.image_seq_length)] * len(rows)
        if sum(counts) != len(places) or sum(rows) != len(given[pixels]):
            return None
        if any(len(given[name]) != len(counts) for name in given if name != pixels):
            counts = [len(places)]
        found += _cut(places, counts, rows, pixels, given)
    return sorted(found, key=lambda visual: visual.first)


def inputs_of(visuals: Sequence[Visual]) -> dict[str, Tensor]:
    """The model's inputs for these videos and images of a prompt alone; nothing for none."""
    names = dict.fromkeys(name for visual in visuals for name in visual.inputs)
    parts = {name: [v.inputs[name] for v in visuals if name in v.inputs] for name in names}
    return {name: part[0] if len(part) == 1 else torch.cat(part) for name, part in parts.items()}


def take_visuals(inputs: dict[str, Any]) -> dict[str, Any]:
    """Takes the inputs of videos and images out; the grids stay, too, from which transformers numbers the prompt.

    From 5.24 on its generate would encode all of them before anybody asks whether they are needed.
    """
    names = [name for pixels, beside in INPUTS.values() for name in (pixels, *beside) if name in inputs]
    return {name: inputs[name] if "grid" in name or "second" in name else inputs.pop(name) for name in names}


def _counts(places: list[int], n: int, alike: bool) -> list[int]:
    """How many of the places belong to each of n videos or images: as many to each where all are alike, a run of
    neighbours where there are n runs; else all places to one.
    """
    if alike and n and len(places) % n == 0:
        return [len(places) // n] * n
    ends = [i + 1 for i, (a, b) in enumerate(pairwise(places)) if b > a + 1]
    runs = [b - a for a, b in pairwise([0, *ends, len(places)])]
    return runs if len(runs) == n else [len(places)]


def _cut(
    places: list[int], counts: list[int], rows: list[int], pixels: str, given: Mapping[str, Tensor]
) -> list[Visual]:
    """counts: tokens of each; rows: its rows of the pixels. One that stands for all has all rows of every input."""
    if len(counts) == 1:
        return [Visual(places[0], places[-1] + 1, given)]
    cuts = []
    tokens, at = (list(pairwise([0, *accumulate(sizes)])) for sizes in (counts, rows))
    for i, ((a, b), (low, high)) in enumerate(zip(tokens, at, strict=True)):
        own = {name: value[low:high] if name == pixels else value[i : i + 1] for name, value in given.items()}
        cuts.append(Visual(places[a], places[b - 1] + 1, own))
    return cuts
