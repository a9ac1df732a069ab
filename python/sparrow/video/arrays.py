"""Frames that are there already: arrays, tensors, lists of them, .npy and .npz files."""

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy

from sparrow.video.info import MAX_BYTES, VideoError

NUMPY_SUFFIXES = (".npy", ".npz")
# of a .npy header; NumPy's own writer needs 128 bytes for such an array
MAX_HEADER = 10000


def check_frames(frames: Any, name: str) -> np.ndarray:
    """`frames` as a NumPy array, checked to be uint8 [T, H, W, 3] with nothing empty."""
    if not isinstance(frames, (np.ndarray, torch.Tensor)):
        raise VideoError(f"{name} must be an array or a tensor, got {type(frames).__name__}")
    if frames.dtype not in (np.uint8, torch.uint8):
        raise VideoError(f"{name} must be uint8 with values 0..255, got dtype {frames.dtype}")
    _check_shape(list(frames.shape), name)
    return _as_numpy(frames, name)


def frames_of_array(source: Any) -> np.ndarray:
    """uint8 [T, H, W, 3] of an array, a tensor or a sequence of frames."""
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return check_frames(source, "source")
    kinds = [type(frame).__name__ for frame in source] if isinstance(source, (list, tuple)) else []
    if not isinstance(source, (list, tuple)) or not all(isinstance(x, (np.ndarray, torch.Tensor)) for x in source):
        of = f" of {', '.join(sorted(set(kinds)))}" if kinds else ""
        raise VideoError(f"source must be a path, an array or a sequence of arrays, got {type(source).__name__}{of}")
    if not source:
        raise VideoError("source must have at least one frame, got an empty sequence")
    shapes = sorted({tuple(frame.shape) for frame in source})
    if len(shapes) > 1:
        raise VideoError(f"source must have frames of one size, got {shapes[0]} and {shapes[1]}")
    for frame in source:
        if frame.dtype not in (np.uint8, torch.uint8):
            raise VideoError(f"source must be uint8 with values 0..255, got a frame of dtype {frame.dtype}")
    _check_shape([len(source), *shapes[0]], "source")
    return np.stack([_as_numpy(frame, "source") for frame in source])


def frames_of_file(path: Path) -> np.ndarray:
    """uint8 [T, H, W, 3] of a regular .npy file, mapped into memory, or of the only array in an .npz file.

    Nothing is unpacked before its header says that it is such an array and takes at most 16 GiB.

    Raises:
        VideoError: anything else; the message names the file.
    """
    try:
        with path.open("rb") as stream:
            if stream.peek(2).startswith(b"PK"):
                return _unpacked(path)
            shape = _check_header(stream, path)
            if stream.tell() + math.prod(shape) > path.stat().st_size:
                raise ValueError(f"it is cut short: its header promises an array of shape {list(shape)}")
        array = npy.open_memmap(path, mode="r")
        _check_shape(list(array.shape), str(path))
        return array
    except (VideoError, MemoryError):
        raise
    except Exception as error:
        # NumPy, zipfile and zlib meet damage with a dozen kinds of exception, from EOFError to TokenError
        reason = str(error) or type(error).__name__
        raise VideoError(f"{path} is not a readable {path.suffix} file of numbers: {reason}") from error


def taken(array: np.ndarray, indices: tuple[int, ...]) -> np.ndarray:
    """The frames at `indices`; those of a file are read here."""
    if isinstance(array, np.memmap):
        check_bytes(len(indices) * array[0].size, str(array.filename or "source"))
        return np.asarray(array)[list(indices)]
    return array if len(indices) == len(array) else array[list(indices)]


def check_bytes(size: int, name: str) -> None:
    """At most as many bytes as a decoded video may have."""
    if size > MAX_BYTES:
        raise VideoError(f"{name}: the frames take {size / 2**30:.0f} GiB, at most {MAX_BYTES >> 30} are read")


def _unpacked(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise VideoError(f"{path} must hold exactly one array, got {[name.removesuffix('.npy') for name in names]}")
        if archive.infolist()[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed in a way that NumPy does not use")
        with archive.open(names[0]) as stream:
            shape = _check_header(stream, path)
            check_bytes(math.prod(shape), str(path))
        with archive.open(names[0]) as stream:
            array = npy.read_array(stream, allow_pickle=False)
            # zipfile compares the checksum when the end is read
            if stream.read(1):
                raise ValueError("the array goes on after its end")
        return array


def _check_header(stream: IO[bytes], path: Path) -> tuple[int, ...]:
    """The shape of a .npy stream that holds frames."""
    head = stream.read(12)
    version = tuple(head[6:8])
    if head[:6] != b"\x93NUMPY" or version not in ((1, 0), (2, 0)):
        raise ValueError("it does not begin as NumPy's format of version 1.0 or 2.0 does")
    length = int.from_bytes(head[8:10] if version == (1, 0) else head[8:12], "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header must have at most {MAX_HEADER} bytes, got {length}")
    stream.seek(8)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    if dtype != np.uint8:
        raise VideoError(f"{path} must be uint8 with values 0..255, got dtype {dtype}")
    _check_shape(list(shape), str(path))
    return shape


def _check_shape(shape: list[int], name: str) -> None:
    if len(shape) != 4 or shape[-1] != 3:
        hint = ": grayscale is not taken, repeat it three times" if len(shape) == 3 or shape[-1:] == [1] else ""
        hint = ": channels come last" if len(shape) == 4 and shape[1] == 3 and shape[-1] != 3 else hint
        raise VideoError(f"{name} must have shape [frames, height, width, 3], got {shape}{hint}")
    if min(shape) < 1:
        raise VideoError(f"{name} must have at least one frame and one pixel, got shape {shape}")


def _as_numpy(frames: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    if isinstance(frames, np.ndarray):
        return frames
    if frames.layout != torch.strided or frames.device.type == "meta":
        raise VideoError(f"{name} must be a dense tensor with values, got {frames.layout} on {frames.device}")
    return frames.cpu().numpy()
