"""Still images - files, addresses that hold their own data, Pillow images, arrays - to upright RGB pixels.

Files are read as transformers' load_image reads them: by Pillow, turned as their EXIF orientation says, converted to
RGB, which drops transparency. An image that Pillow has open already is taken as transformers' processors take it: as it
stands, transparency laid on white.
"""

import base64
import binascii
import io
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from sparrow.video.arrays import check_frames
from sparrow.video.info import VideoError
from sparrow.video.paths import shown, to_path

# how Pillow's readers meet damage: what damaged files of all these formats raised, and what the readers document; not
# among them is running out of memory
DAMAGE = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error,
    zlib.error,
)  # fmt: skip
# what Pillow may read: no format that starts another program or holds drawings
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000")


def read_image(source: Any, where: str) -> np.ndarray:
    """uint8 [H, W, 3], RGB, of one image.

    Args:
        source: a path, a file:// or data: address, a PIL.Image.Image, or an array or tensor uint8 [H, W, 3].
        where: the image in words, for errors.

    Raises:
        FileNotFoundError: no such file.
        VideoError: anything else that keeps it from being such an image.
    """
    if isinstance(source, str) and re.match(r"(?i)data:", source):
        return _read(io.BytesIO(_decoded(source, where)), f"{where}, {shown(source[:40])},")
    if isinstance(source, (str, Path)):
        path = to_path(source, where, "image")
        if path.is_dir():
            raise VideoError(f"{where} must be a file, got the folder {shown(source)}")
        return _read(path, str(path))
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _of_array(source, where)
    if is_pillow(source):
        return _of_pillow(source, where)
    raise VideoError(f"{where} must be a path, a PIL image or an array, got {type(source).__name__}")


def is_pillow(value: Any) -> bool:
    """Whether it is a PIL image; Pillow is not imported for this."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _read(file: Path | IO[bytes], name: str) -> np.ndarray:
    from PIL import Image, ImageOps

    Image.init()
    try:
        opened = Image.open(file, formats=[form for form in FORMATS if form in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise VideoError(f"{name} is too large: {error}") from error
    except DAMAGE as error:
        kinds = "png, jpeg, webp, gif, bmp, tiff, avif, ..."
        raise VideoError(f"{name} is not an image that can be read ({kinds}): {_reason(error)}") from error
    try:
        with opened:
            return np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    except Image.DecompressionBombError as error:
        raise VideoError(f"{name} is too large: {error}") from error
    except DAMAGE as error:
        raise VideoError(f"{name} is damaged or cut short: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    # Pillow shows the object it read from
    return "unknown format" if text.startswith("cannot identify") else text


def _decoded(address: str, where: str) -> bytes:
    """The bytes of data:image/...;base64,..."""
    head, comma, data = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise VideoError(f"{where}: a data address must read data:image/...;base64,..., got {shown(address[:60])}")
    try:
        return base64.b64decode(re.sub(r"\s", "", data), validate=True)
    except (binascii.Error, ValueError) as error:
        raise VideoError(f"{where}: a data address must hold base64: {error}") from error


def _of_array(source: np.ndarray | torch.Tensor, where: str) -> np.ndarray:
    if source.ndim != 3:
        hint = ": grayscale is not taken, repeat it three times" if source.ndim == 2 else ""
        raise VideoError(f"{where} must have shape [height, width, 3], got {list(source.shape)}{hint}")
    checked = np.ascontiguousarray(check_frames(source[None], where)[0])
    # the array itself where it can be: a memo knows it by its id
    return source if isinstance(source, np.ndarray) and source.flags.c_contiguous else checked


def _of_pillow(image: Any, where: str) -> np.ndarray:
    from PIL import Image

    try:
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        array = np.array(image.convert("RGB"))
    except DAMAGE as error:
        # a file it was opened from lazily may be damaged or closed
        raise VideoError(f"{where} cannot be read by Pillow: {_reason(error)}") from error
    if not array.size:
        raise VideoError(f"{where} must have at least one pixel, got size {image.size}")
    return array
