"""Several prompts as one batch."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def together(prompts: Sequence[Mapping[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """The arguments of `generate` for several prompts, each as `prepare` made it: shorter ones padded on the left.

    Args:
        prompts: of one model; videos and images may be in some and not in others.
        pad_token_id: what stands in the padding, where attention_mask is 0.

    Returns:
        what has a value for each token [B, P], padded; all else (pixels, grids, times) joined in the prompts' order.

    Raises:
        ValueError: no prompt, a prompt of several sequences, or inputs whose shapes cannot be joined.
    """
    if not prompts:
        raise ValueError("prompts must hold one prompt or more, got none")
    shapes = [list(one["input_ids"].shape) for one in prompts]
    if any(len(shape) != 2 or shape[0] != 1 for shape in shapes):
        raise ValueError(f"each prompt must be one sequence, input_ids [1, P], got {shapes}")
    most = max(shape[1] for shape in shapes)
    made: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for one in prompts for name in one):
        if not _is_of_tokens(name):
            made[name] = _joined(name, [one[name] for one in prompts if name in one])
        else:
            filler, rows = pad_token_id if name == "input_ids" else 0, [_of(one, name) for one in prompts]
            made[name] = torch.cat([F.pad(row, (most - row.shape[1], 0), value=filler) for row in rows])
    return made


def agreeing(prompt: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """By name, the shapes that prompts joined by `together` must share where both have such a value."""
    shapes = {name: tuple(v.shape[1:]) for name, v in prompt.items() if not _is_of_tokens(name)}
    if len(shapes.get("pixel_values", ())) == 4:
        shapes["pixel_values"] = shapes["pixel_values"][1:]  # LLaVA's tiles are padded
    return shapes


def _is_of_tokens(name: str) -> bool:
    """Whether it has a value for each token."""
    return name in ("input_ids", "attention_mask") or name.endswith("token_type_ids")


def _of(prompt: Mapping[str, Tensor], name: str) -> Tensor:
    """What a prompt has for each token; a prompt without videos may have no types, which are then those of text."""
    if name in prompt:
        return prompt[name]
    ids = prompt["input_ids"]
    return torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids, dtype=torch.int32)


def _joined(name: str, values: list[Tensor]) -> Tensor:
    if name == "pixel_values" and all(value.dim() == 5 for value in values):
        # LLaVA's images [images, tiles, 3, H, W]: tiles of zeros behind those of smaller ones, as its processors do
        most = max(value.shape[1] for value in values)
        values = [F.pad(value, (0, 0, 0, 0, 0, 0, 0, most - value.shape[1])) for value in values]
    if len({value.shape[1:] for value in values}) > 1:
        raise ValueError(f"{name} of these prompts cannot be joined, got shapes {[list(v.shape) for v in values]}")
    return torch.cat(values)
