"""Image files to pixels: what transformers' load_image reads, bit for bit; damage, size, hostile input."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sparrow.video import VideoError, read_image
from tests.video.golden.cases import clip
from tests.video.golden.image_cases import in_mode

SIZES = ((97, 131), (1, 1), (1, 40), (2, 3))


def picture(size: tuple[int, int] = SIZES[0], mode: str = "RGB") -> Any:
    return Image.fromarray(clip((1, *size), 1)[0]).convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def check(file: Path) -> np.ndarray:
    """The pixels, which must be those of transformers."""
    from transformers.image_utils import load_image

    ours = read_image(file, "image")
    assert ours.dtype == np.uint8 and ours.shape[2] == 3
    assert np.array_equal(ours, np.array(load_image(str(file)))), file
    return ours


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "jp2", "avif", "ico"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    for size in SIZES:
        picture(size).save(tmp_path / f"a.{suffix}")
        # an icon is saved in the usual sizes
        assert check(tmp_path / f"a.{suffix}").shape[:2] == size or (suffix == "ico" and size == SIZES[0])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK", "YCbCr"])
def test_modes(mode: str, tmp_path: Path) -> None:
    """Greyscale of 8 and 16 bits, transparency, palettes, print colours."""
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    image = (
        Image.fromarray(np.arange(97 * 131, dtype=np.uint16).reshape(97, 131) * 5) if mode == "I;16" else in_mode(mode)
    )
    image.save(tmp_path / f"a.{suffix}")
    check(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, tmp_path: Path) -> None:
    """A picture a phone took sideways stands upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert check(tmp_path / "a.jpg").shape[:2] == ((97, 131) if orientation < 5 else (131, 97))


def test_animations_give_their_first_picture(tmp_path: Path) -> None:
    first, second = picture((20, 30)), picture((20, 30)).transpose(Image.Transpose.ROTATE_180)
    for suffix in ("gif", "webp", "png", "tiff"):
        first.save(
            tmp_path / f"a.{suffix}",
            save_all=True,
            append_images=[second],
            **({"lossless": True} if suffix == "webp" else {}),
        )
        pixels = check(tmp_path / f"a.{suffix}")
        assert suffix == "gif" or np.array_equal(pixels, np.array(first))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cut.png", lambda whole: whole[: len(whole) // 2], r"cut\.png is damaged or cut short: image file is trunc"),
        ("few.png", lambda whole: png(100, 100, b"\0" * 1000), r"few\.png is damaged or cut short"),
        ("flip.png", lambda whole: whole[:90] + bytes([whole[90] ^ 255]) + whole[91:], r"flip\.png is damaged"),
        ("text.png", lambda whole: b"hello", r"text\.png is not an image that can be read \(png, .*: unknown format"),
        ("empty.png", lambda whole: b"", r"empty\.png is not an image: the file is empty"),
        ("bomb.png", lambda whole: png(60000, 60000, b"\0"), r"bomb\.png is too large: .*3600000000 pixels"),
        ("none.png", lambda whole: png(0, 0, b""), r"none\.png is not an image that can be read"),
        ("page.eps", lambda whole: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", r"page\.eps is not an image"),
    ],
)
def test_files_that_are_refused(name: str, data: Any, message: str, tmp_path: Path) -> None:
    picture().save(tmp_path / "whole.png")
    (tmp_path / name).write_bytes(data((tmp_path / "whole.png").read_bytes()))
    with pytest.raises(VideoError, match=message):
        read_image(tmp_path / name, "image")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image 0 must be an existing image file, got '.*a\.png'"):
        read_image(tmp_path / "a.png", "image 0")
    with pytest.raises(VideoError, match="image 0 must be a file, got the folder"):
        read_image(tmp_path, "image 0")
    with pytest.raises(VideoError, match="image 0 must be a path, got an empty one"):
        read_image("", "image 0")
    closed = Image.new("RGB", (2, 2))
    closed.save(tmp_path / "b.png")
    lazy = Image.open(tmp_path / "b.png")
    lazy.close()
    with pytest.raises(VideoError, match="image 0 cannot be read by Pillow"):
        read_image(lazy, "image 0")
    with pytest.raises(VideoError, match=r"image 0 must have at least one pixel, got size \(0, 5\)"):
        read_image(Image.new("RGB", (0, 5)), "image 0")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(["png", "jpg", "webp", "gif", "tiff", "bmp"]),
    place=st.floats(0, 1),
    value=st.binary(min_size=1, max_size=9),
)
def test_damaged_files_give_an_image_or_a_documented_error(
    suffix: str, place: float, value: bytes, tmp_path: Path
) -> None:
    file = tmp_path / f"a.{suffix}"
    picture((20, 30)).save(file)
    data = bytearray(file.read_bytes())
    at = int(place * (len(data) - 1))
    data[at : at + len(value)] = value
    file.write_bytes(data)
    try:
        assert read_image(file, "image").shape[2] == 3
    except VideoError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize("where", ["open", "convert", "array"])
def test_no_memory_is_no_damage(tmp_path, monkeypatch, where):
    """It is not told as a fault of the file."""

    def full(*args, **kwargs):
        raise MemoryError

    picture().save(tmp_path / "a.png")
    source = picture() if where == "array" else tmp_path / "a.png"
    monkeypatch.setattr(*{"open": (Image, "open")}.get(where, (Image.Image, "convert")), full)
    with pytest.raises(MemoryError):
        read_image(source, "image")
