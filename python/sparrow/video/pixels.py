"""Frames and images to pixel tensors: resize, normalise, cut into patches.

The resize is torch's native uint8 bicubic filter with antialiasing, on the CPU: what torchvision calls there, bit for
bit. Work runs over short blocks of frames, so a long clip is never held in float32 twice.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparrow.video.image_settings import PatchImages
from sparrow.video.info import MAX_BYTES, VideoError
from sparrow.video.pixel_settings import FixedSize, PixelSettings
from sparrow.video.settings import PatchSettings

Memo = dict[Any, Any]  # see once

MAX_ASPECT_RATIO = 200
FRAMES_AT_ONCE = 16


def once(memo: Memo | None, make: Callable[..., Any], array: np.ndarray, *more: Any) -> Any:
    """make(array, *more), or what the memo has of it; the array is kept with it, so that no other gets its id."""
    if memo is None:
        return make(array, *more)
    key = id(array), make, *more
    if key not in memo:
        memo[key] = array, make(array, *more)
    return memo[key][1]


def patch_pixels(
    frames: np.ndarray, settings: PatchSettings | PatchImages, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Frames as flat patches, in the order in which the Qwen vision towers read them.

    Args:
        frames: uint8 [T, H, W, 3]. The last frame is repeated up to whole temporal patches.
        settings: Qwen settings; an image's are for one frame.
        size: (height, width) of a resized frame, multiples of patch_size * merge_size; None = by the pixel budget.

    Returns:
        Pixels float32 [t * h * w, 3 * temporal_patch_size * patch_size^2] and their grid int64 [1, 3], (t, h, w)
        patches.

    Raises:
        VideoError: one side of a frame is more than 200 times the other, or the result takes more than 16 GiB.
    """
    group, patch, merge = settings.temporal_patch_size, settings.patch_size, settings.merge_size
    size = size or budgeted_size(frames.shape[0], frames.shape[1], frames.shape[2], settings)
    t, h, w = -(-frames.shape[0] // group), size[0] // patch, size[1] // patch
    out = _allocate(t * h * w, 3 * group * patch * patch)
    blocks = out.view(t, h // merge, w // merge, merge, merge, 3, group, patch, patch)
    step = max(1, FRAMES_AT_ONCE // group)
    for start in range(0, t, step):
        x = _normalised(_block(frames, start * group, step * group), size, settings)
        if short := -x.shape[0] % group:
            x = torch.cat([x, x[-1:].expand(short, -1, -1, -1)])
        x = x.view(-1, group, 3, h // merge, merge, patch, w // merge, merge, patch)
        blocks[start : start + step] = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return out, torch.tensor([[t, h, w]])


def frame_pixels(frames: np.ndarray, settings: FixedSize) -> Tensor:
    """Frames, or tiles of an image, at the model's fixed size.

    Args:
        frames: uint8 [T, H, W, 3].
        settings: LLaVA or InternVL settings.

    Returns:
        float32 [T, 3, height, width].

    Raises:
        VideoError: the result takes more than 16 GiB.
    """
    size = settings.size or _shortest_edge(frames.shape[1], frames.shape[2], settings.shortest_edge)
    height, width = settings.crop or size
    # the shorter side alone is fixed: a very long frame grows before it is cropped
    _check_bytes(size[0] * size[1] * 3 * min(frames.shape[0], FRAMES_AT_ONCE), [*size, 3])
    out = _allocate(frames.shape[0], 3, height, width)
    for start in range(0, frames.shape[0], FRAMES_AT_ONCE):
        out[start : start + FRAMES_AT_ONCE] = _normalised(_block(frames, start, FRAMES_AT_ONCE), size, settings)
    return out


def budgeted_size(num_frames: int, height: int, width: int, settings: PatchSettings | PatchImages) -> tuple[int, int]:
    """(height, width) of a resized frame: multiples of patch_size * merge_size in the pixel budget, aspect ratio kept.

    Raises:
        VideoError: one side is more than 200 times the other.
    """
    factor = settings.patch_size * settings.merge_size
    if isinstance(settings, PatchImages):
        return fitted_size(height, width, factor, settings.min_pixels, settings.max_pixels)
    # Qwen3-VL budgets the whole clip, the others each frame
    count, rounded = 1, 1
    if settings.family == "qwen3_vl":
        group = settings.temporal_patch_size
        count = max(num_frames, group)
        rounded = round(count / group) * group
        if height < factor or width < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
    least, most = settings.min_pixels, _max_pixels(num_frames, factor, settings)
    return fitted_size(height, width, factor, least, most, count, rounded)


def fitted_size(
    height: int, width: int, factor: int, least: int, most: int, count: int = 1, rounded: int = 1
) -> tuple[int, int]:
    """(height, width) in multiples of `factor` with an area between least and most, aspect ratio kept.

    Args:
        height: of a frame.
        width: of a frame.
        factor: pixels per side of a token.
        least: pixels of `count` frames, at least.
        most: pixels of `count` frames, at most.
        count: frames that share the budget.
        rounded: count in whole temporal patches.

    Raises:
        VideoError: one side is more than 200 times the other.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise VideoError(f"the aspect ratio must be at most {MAX_ASPECT_RATIO}, got height {height} and width {width}")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if rounded * new_height * new_width > most:
        beta = math.sqrt(count * height * width / most)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif rounded * new_height * new_width < least:
        beta = math.sqrt(least / (count * height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_height, new_width


def _max_pixels(num_frames: int, factor: int, settings: PatchSettings) -> int:
    """The upper end of the budget, lowered for long clips where the settings ask for it."""
    most = settings.max_pixels
    if not settings.cap_pixels_per_frame:
        return most
    floor = int(settings.min_pixels * 1.05)
    if settings.family == "qwen3_vl":
        return max(min(settings.max_video_tokens * factor * factor, most // num_frames), floor) * num_frames
    total = int(settings.max_video_tokens * factor * factor * 0.9)
    return max(min(most, total * settings.temporal_patch_size // num_frames), floor)


def _allocate(*shape: int) -> Tensor:
    """An empty float32 tensor."""
    _check_bytes(4 * math.prod(shape), list(shape))
    return torch.empty(shape, dtype=torch.float32)


def _check_bytes(size: int, shape: list[int]) -> None:
    """At most as many bytes as a decoded video may have."""
    if size > MAX_BYTES:
        raise VideoError(
            f"the pixels of shape {shape} take {size / 2**30:.0f} GiB, at most {MAX_BYTES >> 30} are made: "
            "pass a smaller num_frames or fps, or smaller frames"
        )


def _shortest_edge(height: int, width: int, edge: int | None) -> tuple[int, int]:
    assert edge is not None
    longest = int(edge * max(height, width) / min(height, width))
    return (longest, edge) if width <= height else (edge, longest)


def _block(frames: np.ndarray, start: int, count: int) -> Tensor:
    """uint8 [<= count, 3, H, W], contiguous."""
    return torch.from_numpy(np.ascontiguousarray(frames[start : start + count].transpose(0, 3, 1, 2)))


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [T, 3, H, W] -> [T, 3, height, width]; as it is where it has this size."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=list(size), mode="bicubic", align_corners=False, antialias=True)


def _normalised(x: Tensor, size: tuple[int, int], settings: PixelSettings) -> Tensor:
    """uint8 [T, 3, H, W] -> float32 [T, 3, height, width], resized, cropped, rescaled and normalised."""
    x = resized(x, size)
    if isinstance(settings, FixedSize) and settings.crop is not None:
        x = _centre_crop(x, settings.crop)
    # rescale folded into mean and std, in this order of operations: transformers' bits
    mean = torch.tensor(settings.image_mean, dtype=torch.float32) * (1.0 / settings.rescale_factor)
    std = torch.tensor(settings.image_std, dtype=torch.float32) * (1.0 / settings.rescale_factor)
    return x.to(torch.float32).sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def _centre_crop(x: Tensor, crop: tuple[int, int]) -> Tensor:
    """The middle [height, width] of every frame; where the frame is smaller, black around it."""
    pad_h, pad_w = max(0, crop[0] - x.shape[-2]), max(0, crop[1] - x.shape[-1])
    x = F.pad(x, (pad_w // 2, (pad_w + 1) // 2, pad_h // 2, (pad_h + 1) // 2))
    top, left = (x.shape[-2] - crop[0]) // 2, (x.shape[-1] - crop[1]) // 2
    return x[..., top : top + crop[0], left : left + crop[1]]
