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
        filler = {"input_ids": pad_token_id, "attention_mask": 0}.get(name)
        if filler is None and name.endswith("token_type_ids"):
            filler = 0
        if filler is None:
            made[name] = _joined(name, [one[name] for one in prompts if name in one])
        else:
            rows = [_of(one, name) for one in prompts]
            made[name] = torch.cat([F.pad(row, (most - row.shape[1], 0), value=filler) for row in rows])
    return made


def _of(prompt: Mapping[str, Tensor], name: str) -> Tensor:
    """What a prompt has for each token; a prompt without videos may have no types, which are then those of text."""
    if name in prompt:
        return prompt[name]
    ids = prompt["input_ids"]
    return torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids, dtype=torch.int32)


def _joined(name: str, values: list[Tensor]) -> Tensor:
    if len({value.shape[1:] for value in values}) > 1:
        raise ValueError(f"{name} of these prompts cannot be joined, got shapes {[list(v.shape) for v in values]}")
    return torch.cat(values)
