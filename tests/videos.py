"""Model inputs for the tiny targets: random text around random videos."""

import torch
from torch import Tensor

from sparrow.targets.tiny import TinySize

FAMILIES = ["qwen2_5_vl", "llava_onevision", "qwen2_vl", "qwen3_vl", "internvl", "llava_next_video"]


def patchify(video: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """[T, 3, H, W] -> Qwen's rows [t*h*w, 3*2*patch*patch] and grid [[t, h, w]]; T even."""
    t, c, height, width = video.shape
    grid = (t // 2, height // patch, width // patch)
    x = video.view(grid[0], 2, c, grid[1] // 2, 2, patch, grid[2] // 2, 2, patch)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid[0] * grid[1] * grid[2], -1), torch.tensor([grid])


def sample_inputs(family: str, *, videos: int = 1, frames: int = 4, seed: int = 0, text: int = 9) -> dict[str, Tensor]:
    """A prompt with 0, 1 or 2 videos of 56 x 56 (Qwen3-VL: 64 x 64) pixels."""
    g, s = torch.Generator().manual_seed(seed), TinySize()
    words = lambda n: torch.randint(3, 280, (n,), generator=g)  # noqa: E731
    side = 64 if family == "qwen3_vl" else 56
    clips = [torch.randn(frames, 3, side, side, generator=g) for _ in range(videos)]
    parts = [words(5)]
    for _ in clips:
        parts += [*_placeholders(family, frames, side, s, words), words(3)]
    ids = torch.cat([*parts, words(text)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not clips:
        return inputs
    if family.startswith("qwen"):
        rows, grids = zip(*(patchify(clip, 16 if family == "qwen3_vl" else 14) for clip in clips), strict=True)
        inputs |= {"pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.cat(grids)}
        inputs["mm_token_type_ids"] = (ids == s.video_token_id).int() * 2
        if family == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.full((videos,), 1.0)
    elif family == "internvl":
        inputs["pixel_values"] = torch.cat(clips)
    else:
        inputs["pixel_values_videos"] = torch.stack(clips)
    return inputs


def _placeholders(family: str, frames: int, side: int, s: TinySize, words) -> list[Tensor]:
    video = lambda n: torch.full((n,), s.video_token_id)  # noqa: E731
    start, end = torch.tensor([s.vision_start_token_id]), torch.tensor([s.vision_end_token_id])
    if family == "qwen3_vl":
        per_frame = (side // 16) ** 2 // 4
        return [x for _ in range(frames // 2) for x in (words(2), start, video(per_frame), end)]
    if family.startswith("qwen"):
        return [start, video(frames // 2 * (side // 14) ** 2 // 4), end]
    return [video(frames * 4 + (1 if family == "llava_onevision" else 0))]
