"""Which frames of a clip each family looks at."""

import numpy as np
import torch

from sparrow.video.info import VideoError
from sparrow.video.pixel_settings import is_finite
from sparrow.video.settings import FrameSettings, PatchSettings, VideoSettings


def sample_indices(
    total: int,
    source_fps: float | None,
    settings: VideoSettings | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
) -> tuple[int, ...]:
    """Source indices of the sampled frames, ascending, as the family's transformers processor picks them.

    Args:
        total: frames in the clip, at least 1.
        source_fps: the clip's frames per second; needed for `fps` only.
        settings: the family; None = uniform sampling.
        num_frames: frames wanted. Qwen2-VL and Qwen2.5-VL round it to whole temporal patches.
        fps: sampled frames per second wanted. With neither this nor num_frames: every frame.

    Raises:
        VideoError: both given, one out of range, more frames than the clip has, or no clock to sample by.
    """
    if num_frames is not None and fps is not None:
        raise VideoError(f"at most one of num_frames and fps may be given, got num_frames={num_frames} and fps={fps}")
    if num_frames is not None:
        if not isinstance(num_frames, int) or isinstance(num_frames, bool) or num_frames < 1:
            raise VideoError(f"num_frames must be a positive integer, got {num_frames!r}")
        if num_frames > total:
            raise VideoError(f"num_frames must not exceed the {total} frames of the video, got {num_frames}")
    elif fps is not None:
        if not (is_finite(fps) and fps > 0):
            raise VideoError(f"fps must be a positive finite number, got {fps!r}")
        if source_fps is None:
            raise VideoError(f"fps={fps} needs a frame rate: pass source_fps to load_video for frames that have none")
    else:
        return tuple(range(total))
    if settings is not None and settings.family == "qwen3_vl":
        return _linspace(total, source_fps, _patch(settings), num_frames, fps)
    if isinstance(settings, PatchSettings):
        return _whole_patches(total, source_fps, settings, num_frames, fps)
    if num_frames is None:
        num_frames = min(max(1, int(_wanted(total, source_fps, fps))), total)
    if isinstance(settings, FrameSettings) and settings.initial_shift is not False:
        return _shifted(total, num_frames, settings.initial_shift)
    return tuple(int(i) for i in np.arange(num_frames) * total // num_frames)


def default_sampling(total: int, settings: VideoSettings | None) -> tuple[int | None, float | None]:
    """(num_frames, fps) for a file when the caller names neither; a short clip gives all its frames."""
    if settings is None:
        return None, None
    return (None if settings.num_frames is None else min(settings.num_frames, total)), settings.fps


def _wanted(total: int, source_fps: float | None, fps: float | None) -> float:
    assert source_fps is not None and fps is not None
    # no caller takes more than all, and a quotient may be infinite
    return min(total / source_fps * fps, total)


def _patch(settings: VideoSettings) -> PatchSettings:
    assert isinstance(settings, PatchSettings)
    return settings


def _whole_patches(
    total: int, source_fps: float | None, settings: PatchSettings, num_frames: int | None, fps: float | None
) -> tuple[int, ...]:
    """Qwen2-VL, Qwen2.5-VL: a whole number of temporal patches where the clip has that many frames."""
    group = settings.temporal_patch_size
    if num_frames is not None:
        whole = min(round(num_frames / group), total // group) * group
        num_frames = whole or num_frames
    else:
        largest = min(settings.max_frames, total) // group * group
        wanted = min(max(_wanted(total, source_fps, fps), settings.min_frames), largest)
        num_frames = int(wanted // group * group) or total
    # in float32, as there: in places an index differs by one from exact arithmetic, or one index too many comes out
    indices = torch.arange(0, total, total / num_frames, dtype=torch.float32).int().tolist()
    return tuple(indices[:num_frames])


def _linspace(
    total: int, source_fps: float | None, settings: PatchSettings, num_frames: int | None, fps: float | None
) -> tuple[int, ...]:
    """Qwen3-VL: first and last frame included."""
    if num_frames is None:
        wanted = int(_wanted(total, source_fps, fps))
        num_frames = min(max(wanted, settings.min_frames), settings.max_frames, total)
    return tuple(int(i) for i in np.linspace(0, total - 1, num_frames).round())


def _shifted(total: int, num_frames: int, shift: bool | float) -> tuple[int, ...]:
    """InternVL: the middle of each of `num_frames` equal parts."""
    first = total / num_frames / 2 if shift is True else float(shift)
    indices = torch.arange(first, total, total / num_frames, dtype=torch.float32).int().tolist()
    return tuple(indices[:num_frames])
