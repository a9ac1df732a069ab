"""Model inputs for the tiny targets: random text around random videos and images."""

import numpy as np
import torch
from torch import Tensor

from sparrow.targets.tiny import PINPOINTS, TinySize
from sparrow.video import PatchImages, TileImages
from sparrow.video.image_pixels import image_pixels

FAMILIES = ["qwen2_5_vl", "llava_onevision", "qwen2_vl", "qwen3_vl", "internvl", "llava_next_video"]


def patchify(video: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """[T, 3, H, W] -> Qwen's rows [t*h*w, 3*2*patch*patch] and grid [[t, h, w]]; T even."""
    t, c, height, width = video.shape
    grid = (t // 2, height // patch, width // patch)
    x = video.view(grid[0], 2, c, grid[1] // 2, 2, patch, grid[2] // 2, 2, patch)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid[0] * grid[1] * grid[2], -1), torch.tensor([grid])


def image_settings(family: str) -> PatchImages | TileImages:
    """What the tiny target of the family takes; some tiles, few patches."""
    if family.startswith("qwen"):
        patch = 16 if family == "qwen3_vl" else 14
        return PatchImages(family=family, patch_size=patch, min_pixels=3136, max_pixels=9000)
    if family == "internvl":
        return TileImages(family=family, size=(56, 56), tokens=4, max_tiles=3)
    return TileImages(
        family=family, size=(56, 56), tokens=16, grid=(4, 4), pinpoints=tuple((h, w) for h, w in PINPOINTS),
        max_area=9 if family == "llava_onevision" else None,
    )  # fmt: skip


def sample_inputs(
    family: str, *, videos: int = 1, frames: int = 4, seed: int = 0, text: int = 9, images: int = 0
) -> dict[str, Tensor]:
    """A prompt with videos of 56 x 56 (Qwen3-VL: 64 x 64) pixels, and images of other sizes before and behind them."""
    g, s = torch.Generator().manual_seed(seed), TinySize()
    words = lambda n: torch.randint(3, 280, (n,), generator=g)  # noqa: E731
    side = 64 if family == "qwen3_vl" else 56
    clips = [torch.randn(frames, 3, side, side, generator=g) for _ in range(videos)]
    drawn = np.random.default_rng(seed)
    pictures = [drawn.integers(0, 256, (60 + 50 * i, 100, 3), np.uint8) for i in range(images)]
    seen = image_pixels(pictures, image_settings(family), [None] * images) if images else None
    parts, rows = [words(5)], []
    for i in range(max(videos, images)):
        if seen is not None and i < images:
            parts += [*_image_placeholders(family, seen.tokens[i], s), words(2)]
            rows += seen.tiles[i : i + 1]
        if i < videos:
            parts += [*_placeholders(family, frames, side, s, words), words(3)]
            rows.append(clips[i])
    ids = torch.cat([*parts, words(text)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family.startswith("qwen") and (videos or images):
        inputs["mm_token_type_ids"] = (ids == s.video_token_id).int() * 2 + (ids == s.image_token_id).int()
    inputs |= {} if seen is None else seen.inputs
    if family == "internvl" and rows:
        inputs["pixel_values"] = torch.cat(rows)
    elif family.startswith("qwen") and clips:
        patches, grids = zip(*(patchify(clip, 16 if family == "qwen3_vl" else 14) for clip in clips), strict=True)
        inputs |= {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.cat(grids)}
        if family == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.full((videos,), 1.0)
    elif clips:
        inputs["pixel_values_videos"] = torch.stack(clips)
    return inputs


def _image_placeholders(family: str, tokens: int, s: TinySize) -> list[Tensor]:
    # one token stands for both in InternVL
    image = torch.full((tokens,), s.video_token_id if family == "internvl" else s.image_token_id)
    marks = torch.tensor([[s.vision_start_token_id], [s.vision_end_token_id]])
    return [marks[0], image, marks[1]] if family.startswith("qwen") else [image]


def _placeholders(family: str, frames: int, side: int, s: TinySize, words) -> list[Tensor]:
    video = lambda n: torch.full((n,), s.video_token_id)  # noqa: E731
    start, end = torch.tensor([s.vision_start_token_id]), torch.tensor([s.vision_end_token_id])
    if family == "qwen3_vl":
        per_frame = (side // 16) ** 2 // 4
        return [x for _ in range(frames // 2) for x in (words(2), start, video(per_frame), end)]
    if family.startswith("qwen"):
        return [start, video(frames // 2 * (side // 14) ** 2 // 4), end]
    return [video(frames * 4 + (1 if family == "llava_onevision" else 0))]
