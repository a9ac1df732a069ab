"""Any source of frames - file, folder, array - to sampled RGB frames."""

import math
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from sparrow.video.arrays import NUMPY_SUFFIXES, check_bytes, frames_of_array, frames_of_file, taken
from sparrow.video.info import Progress, VideoError, VideoInfo
from sparrow.video.paths import kind, status, to_path
from sparrow.video.pixel_settings import is_finite
from sparrow.video.sampling import default_sampling, sample_indices
from sparrow.video.settings import VideoSettings

# a path, an array [T, H, W, 3], or a sequence of frames: arrays [H, W, 3] or paths of pictures
Source: TypeAlias = str | Path | np.ndarray | torch.Tensor | Sequence[Any]
ON_DAMAGE = ("raise", "skip")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# of a frame, where its number says when it shows, and of a second, where the file does, often in whole milliseconds
ROUNDING, CLOCK_ROUNDING = 1e-6, 6e-4


def load_video(
    source: Source,
    settings: VideoSettings | None = None,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    source_fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    progress: Progress | None = None,
    on_damage: str = "raise",
) -> tuple[np.ndarray, VideoInfo]:
    """Decodes and samples a clip.

    With neither `num_frames` nor `fps`, a video file is sampled by the settings' default; arrays and pictures count as
    already sampled and keep every frame.

    Args:
        source: a video file (mp4, mkv, webm, avi, ...), a folder of pictures (natural order of names), a .npy or .npz
            file, an array or tensor uint8 [T, H, W, 3], or a sequence of uint8 [H, W, 3] frames or of picture files.
            Files are named by a path or by a file:// address.
        settings: the family whose sampling rule and defaults hold; None = uniform sampling, by default every frame.
        num_frames: frames to take; more than the clip has is an error.
        fps: frames per second to take.
        source_fps: frame rate of a source without one (arrays, pictures).
        start: seconds; only frames at or after it are sampled. `total_frames` then counts the frames of this part
            alone, `indices` stay those of the whole source.
        end: seconds; only frames at or before it are sampled.
        progress: called with (frames done, frames wanted).
        on_damage: what to do with a video file that is damaged or cut off: "raise", or "skip" to sample among the
            frames that can be decoded whole; VideoInfo.skipped says which could not.

    Returns:
        Frames uint8 [T, H, W, 3] RGB upright, and where they lie in the source.

    Raises:
        FileNotFoundError: no such file or folder.
        VideoError: anything else that keeps the source from being such a clip.
    """
    if source_fps is not None and not (is_finite(source_fps) and source_fps > 0):
        raise VideoError(f"source_fps must be a positive finite number, got {source_fps!r}")
    if on_damage not in ON_DAMAGE:
        raise VideoError(f"on_damage must be one of {', '.join(ON_DAMAGE)}, got {on_damage!r}")
    span = range(0)

    def choose(total: int, rate: float | None, seconds: np.ndarray) -> tuple[int, ...]:
        nonlocal span
        span = frames_between(total, rate, start, end, seconds)
        asked = num_frames is not None or fps is not None or not clock
        wanted = (num_frames, fps) if asked else default_sampling(len(span), settings)
        return tuple(span.start + i for i in sample_indices(len(span), rate, settings, *wanted))

    path = to_path(source) if isinstance(source, (str, Path)) else None
    clock = has_clock(path)
    if path is not None and clock:
        from sparrow.video.decode import decode_file  # PyAV is needed where a file is read, and nowhere else

        frames, info = decode_file(path, choose, source_fps, progress, on_damage)
        return frames, info if start is None and end is None else replace(info, total_frames=len(span))
    total, take = _frames(source, path, progress)
    indices = choose(total, source_fps, np.empty(0))
    frames = take(indices)
    return frames, VideoInfo(len(span), source_fps, indices, frames.shape[1], frames.shape[2])


def has_clock(source: Any) -> bool:
    """Whether a source is a video file, which says how fast its frames follow each other."""
    path = to_path(source) if isinstance(source, (str, Path)) else None
    return path is not None and not path.is_dir() and path.suffix.lower() not in NUMPY_SUFFIXES


def is_clip(value: Any) -> bool:
    """Whether it is what load_video returns."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], VideoInfo)


def frames_between(
    total: int, fps: float | None, start: float | None, end: float | None, seconds: np.ndarray | None = None
) -> range:
    """Indices of the frames that show from `start` to `end` seconds, both included.

    Args:
        total: frames of the clip.
        fps: its frames per second.
        start: None = from the first frame on.
        end: None = to the last frame.
        seconds: float64 [total], when each frame shows, ascending from 0; None or empty = frame i at i / fps.

    Raises:
        VideoError: a time that is no number >= 0, in the wrong order or beyond the clip; no clock to find it by.
    """
    if start is None and end is None:
        return range(total)
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (is_finite(value) and value >= 0):
            raise VideoError(f"{name} must be a number of seconds >= 0, got {value!r}")
    least, most = start or 0.0, math.inf if end is None else end
    if seconds is not None and len(seconds):
        first = int(np.searchsorted(seconds, least - CLOCK_ROUNDING))
        last = int(np.searchsorted(seconds, most + CLOCK_ROUNDING, side="right")) - 1
        length = float(seconds[-1])
    elif fps is None:
        raise VideoError("start and end need a frame rate: pass source_fps for frames that have none")
    else:
        first = math.ceil(min(least * fps, total) - ROUNDING)
        last = math.floor(min(most * fps, total - 1) + ROUNDING)
        length = (total - 1) / fps
    if first > last:
        raise VideoError(
            f"start and end must have a frame between them, got {start} and {end} where the last of {total} frames "
            f"shows at {length:.2f} s"
        )
    return range(first, last + 1)


def _frames(
    source: Any, path: Path | None, progress: Progress | None
) -> tuple[int, Callable[[tuple[int, ...]], np.ndarray]]:
    """(number of frames, indices -> those frames) of a source without a clock."""
    if (path is not None and path.is_dir()) or _are_pictures(source):
        files = _folder(path) if path is not None else [to_path(file) for file in source]
        _check_regular(files)
        return len(files), lambda indices: _pictures([files[i] for i in indices], progress)
    array = frames_of_file(path) if path is not None else frames_of_array(source)
    return len(array), lambda indices: taken(array, indices)


def _are_pictures(source: Any) -> bool:
    """Whether it is a sequence of paths of pictures, as Qwen's model cards name the frames of a video."""
    if not isinstance(source, (list, tuple)) or not source:
        return False
    return all(isinstance(file, (str, Path)) and str(file).lower().endswith(PICTURE_SUFFIXES) for file in source)


def _folder(path: Path) -> list[Path]:
    try:
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES), key=_natural)
    except OSError as error:
        raise VideoError(f"{path} must be a folder that can be read: {error.strerror}") from error
    if not files:
        raise VideoError(f"{path} must hold pictures ({', '.join(PICTURE_SUFFIXES)}), found none")
    return files


def _check_regular(files: list[Path]) -> None:
    """All of them before the first is opened: a FIFO would be waited for."""
    for file in files:
        mode = status(file, "a picture", file).st_mode
        if not stat.S_ISREG(mode):
            raise VideoError(f"a picture must be a regular file, {file} is {kind(mode)}")


def _pictures(files: list[Path], progress: Progress | None) -> np.ndarray:
    """uint8 [files, H, W, 3]."""
    from sparrow.video.decode import decode_picture  # as above

    frames = np.empty((0, 0, 0, 3), np.uint8)
    for done, file in enumerate(files):
        picture = decode_picture(file)
        if done == 0:
            check_bytes(len(files) * picture.size, str(file.parent))
            frames = np.empty((len(files), *picture.shape), np.uint8)
        if picture.shape != frames.shape[1:]:
            raise VideoError(
                f"{file.parent} must hold pictures of one size, {file.name} is {picture.shape[:2]} after "
                f"{frames.shape[1:3]}"
            )
        frames[done] = picture
        if progress is not None:
            progress(done + 1, len(files))
    return frames


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sort key under which frame2 precedes frame10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", file.name)]
