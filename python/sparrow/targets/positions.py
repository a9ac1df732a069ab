"""Explicit position ids of a prompt: as transformers numbers them, or by the rule Qwen2/2.5-VL were trained with."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparrow.targets.adapter import Target


def prompt_positions(target: Target, inputs: dict[str, object], rule: str) -> Tensor | None:
    """Position ids int64 [3, B, P] for generate(position_ids=...), or None where transformers' own are wanted.

    Args:
        target: the model's adapter.
        inputs: what the processor made: input_ids, video_grid_thw, second_per_grid_ts, ...
        rule: "hf" = as transformers' generate numbers them; "reference" = text after a visual block resumes at the
            maximum over all three axes + 1, as in Qwen2-VL's paper (arXiv 2409.12191, section 2.1) and training.

    Raises:
        ValueError: an unknown rule, or "reference" for a family or input it is not defined for.
    """
    if rule == "hf":
        return None
    if rule != "reference":
        raise ValueError(f"positions must be 'hf' or 'reference', got {rule!r}")
    if target.family not in ("qwen2_vl", "qwen2_5_vl"):
        raise ValueError(f"positions='reference' is defined for Qwen2-VL and Qwen2.5-VL, got {target.family}")
    config, ids, mask = target.model.config, inputs["input_ids"], inputs.get("attention_mask")
    assert isinstance(ids, Tensor)
    merge = int(config.vision_config.spatial_merge_size)
    videos = _grids(inputs.get("video_grid_thw"))
    images = _grids(inputs.get("image_grid_thw"))
    seconds = inputs.get("second_per_grid_ts")
    steps = [1.0] * len(videos)
    if target.family == "qwen2_5_vl" and seconds is not None:
        per_second = float(config.vision_config.tokens_per_second)
        steps = [per_second * float(s) for s in torch.as_tensor(seconds).flatten()]
    grids = {
        int(config.video_token_id): iter(zip(videos, steps, strict=True)),
        int(config.image_token_id): iter((g, 1.0) for g in images),
    }
    padding = [0] * len(ids)
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        padding = (mask == 0).cumprod(1).sum(1).tolist()
    rows = [_row(row[n:], n, grids, merge) for row, n in zip(ids.tolist(), padding, strict=True)]
    return torch.stack(rows, dim=1).to(ids.device)


def _row(tokens: list[int], padding: int, grids: dict[int, Iterator], merge: int) -> Tensor:
    """int64 [3, padding + len(tokens)] of one prompt, whose visual blocks are the next in `grids`; 1 at padding."""
    blocks = [torch.ones(3, padding, dtype=torch.int64)]
    start, i = 0, 0
    while i < len(tokens):
        if tokens[i] in grids:
            (t, h, w), step = next(grids[tokens[i]])
            block = _visual_block(t, h // merge, w // merge, step)
        else:
            stop = next((j for j in range(i, len(tokens)) if tokens[j] in grids), len(tokens))
            block = torch.arange(stop - i).expand(3, -1)
        blocks.append(block + start)
        start, i = int(blocks[-1].max()) + 1, i + block.shape[1]
    return torch.cat(blocks, dim=1)


def _grids(thw: object) -> list[tuple[int, int, int]]:
    return [] if thw is None else [tuple(row) for row in torch.as_tensor(thw).tolist()]


def _visual_block(t: int, h: int, w: int, step: float) -> Tensor:
    """int64 [3, t*h*w]: time, row and column of every merged patch of one video or image."""
    axes = torch.meshgrid((torch.arange(t) * step).long(), torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack(axes).reshape(3, -1)
