"""Any source of frames - file, folder, array - to sampled RGB frames."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from sparrow.video.decode import Progress, decode_file, decode_picture
from sparrow.video.info import VideoError, VideoInfo
from sparrow.video.sampling import default_sampling, sample_indices
from sparrow.video.settings import VideoSettings

# a path, an array [T, H, W, 3], or a sequence of frames [H, W, 3]
Source: TypeAlias = str | Path | np.ndarray | torch.Tensor | Sequence[Any]
ON_DAMAGE = ("raise", "skip")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_video(
    source: Source,
    settings: VideoSettings | None = None,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    source_fps: float | None = None,
    progress: Progress | None = None,
    on_damage: str = "raise",
) -> tuple[np.ndarray, VideoInfo]:
    """Decodes and samples a clip.

    With neither `num_frames` nor `fps`, a video file is sampled by the settings' default; arrays and folders count as
    already sampled and keep every frame.

    Args:
        source: a video file (mp4, mkv, webm, avi, ...), a folder of pictures (natural order of names), a .npy or .npz
            file, an array or tensor uint8 [T, H, W, 3], or a sequence of uint8 [H, W, 3] frames.
        settings: the family whose sampling rule and defaults hold; None = uniform sampling, by default every frame.
        num_frames: frames to take; more than the clip has is an error.
        fps: frames per second to take.
        source_fps: frame rate of a source without one (arrays, folders).
        progress: called with (frames done, frames wanted).
        on_damage: what to do with a video file that is damaged or cut off: "raise", or "skip" to sample among the
            frames that can be decoded whole; VideoInfo.skipped says which could not.

    Returns:
        Frames uint8 [T, H, W, 3] RGB upright, and where they lie in the source.

    Raises:
        FileNotFoundError: no such file or folder.
        VideoError: anything else that keeps the source from being such a clip.
    """
    if source_fps is not None and not (isinstance(source_fps, (int, float)) and 0 < source_fps < float("inf")):
        raise VideoError(f"source_fps must be a positive finite number, got {source_fps!r}")
    if on_damage not in ON_DAMAGE:
        raise VideoError(f"on_damage must be one of {', '.join(ON_DAMAGE)}, got {on_damage!r}")
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is not None and not path.exists():
        raise FileNotFoundError(f"source must be an existing video file or folder, got {str(source)!r}")
    if path is None or path.is_dir() or path.suffix.lower() in (".npy", ".npz"):
        frames = _array(source) if path is None else _folder(path, progress) if path.is_dir() else _numpy_file(path)
        indices = sample_indices(len(frames), source_fps, settings, num_frames, fps)
        info = VideoInfo(len(frames), source_fps, indices, frames.shape[1], frames.shape[2])
        return (frames if len(indices) == len(frames) else frames[list(indices)]), info

    def choose(total: int, rate: float | None) -> tuple[int, ...]:
        asked = num_frames is not None or fps is not None
        wanted = (num_frames, fps) if asked else default_sampling(total, settings)
        return sample_indices(total, rate, settings, *wanted)

    return decode_file(path, choose, source_fps, progress, on_damage)


def check_frames(frames: Any, name: str) -> np.ndarray:
    """`frames` as a NumPy array, checked to be uint8 [T, H, W, 3] with nothing empty."""
    if not isinstance(frames, (np.ndarray, torch.Tensor)):
        raise VideoError(f"{name} must be an array or a tensor, got {type(frames).__name__}")
    if frames.dtype not in (np.uint8, torch.uint8):
        raise VideoError(f"{name} must be uint8 with values 0..255, got dtype {frames.dtype}")
    frames = frames.cpu().numpy() if isinstance(frames, torch.Tensor) else frames
    shape = list(frames.shape)
    if frames.ndim != 4 or shape[-1] != 3:
        hint = ": grayscale is not taken, repeat it three times" if frames.ndim == 3 or shape[-1] == 1 else ""
        hint = ": channels come last" if frames.ndim == 4 and shape[1] == 3 and shape[-1] != 3 else hint
        raise VideoError(f"{name} must have shape [frames, height, width, 3], got {shape}{hint}")
    if 0 in shape:
        raise VideoError(f"{name} must have at least one frame and one pixel, got shape {shape}")
    return frames


def _array(source: Any) -> np.ndarray:
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return check_frames(source, "source")
    if not isinstance(source, (list, tuple)) or not all(isinstance(x, (np.ndarray, torch.Tensor)) for x in source):
        raise VideoError(f"source must be a path, an array or a sequence of arrays, got {type(source).__name__}")
    if not source:
        raise VideoError("source must have at least one frame, got an empty sequence")
    shapes = sorted({tuple(frame.shape) for frame in source})
    if len(shapes) > 1:
        raise VideoError(f"source must have frames of one size, got {shapes[0]} and {shapes[1]}")
    return check_frames(np.stack([np.asarray(frame) for frame in source]), "source")


def _numpy_file(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise VideoError(f"{path} is not a readable {path.suffix} file of numbers: {error}") from error
    if isinstance(loaded, np.ndarray):
        return check_frames(loaded, str(path))
    with loaded:
        if len(loaded.files) != 1:
            raise VideoError(f"{path} must hold exactly one array, got {loaded.files}")
        return check_frames(loaded[loaded.files[0]], str(path))


def _folder(path: Path, progress: Progress | None) -> np.ndarray:
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES), key=_natural)
    if not files:
        raise VideoError(f"{path} must hold pictures ({', '.join(PICTURE_SUFFIXES)}), found none")
    frames = []
    for file in files:
        frames.append(decode_picture(file))
        if frames[-1].shape != frames[0].shape:
            raise VideoError(
                f"{path} must hold pictures of one size, {file.name} is {frames[-1].shape[:2]} after "
                f"{frames[0].shape[:2]}"
            )
        if progress is not None:
            progress(len(frames), len(files))
    return np.stack(frames)


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sort key under which frame2 precedes frame10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", file.name)]
