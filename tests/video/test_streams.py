"""Which stream of a file is its film, and which way up its frames are."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from sparrow.video import VideoError, load_video
from tests.video.encode import decoded, encode, moving, together

PLAIN = Disposition(0)
# What EXIF's eight orientations ask for: 1 is upright, 3 half a turn, 6 a quarter clockwise, the even ones mirror.
UPRIGHT: dict[int, Any] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("film") / "film.mp4", count=30)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A track of thumbnails."""
    return encode(
        tmp_path_factory.mktemp("small") / "small.mov", "mjpeg", pix_fmt="yuvj420p", base=Fraction(1), rate=1,
        frames=moving(2, 16, 32),
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("first", [True, False])
def test_default_stream_is_the_film(suffix: str, first: bool, film: Path, small: Path, tmp_path: Path) -> None:
    parts = [(film, Disposition.default), (small, PLAIN)]
    path = together(tmp_path / f"two.{suffix}", parts if first else parts[::-1])
    frames, info = load_video(path)
    assert frames.shape == (30, 64, 96, 3) and info.fps == pytest.approx(30.0)
    assert np.array_equal(frames, decoded(film))


@pytest.mark.parametrize("first", [True, False])
def test_longest_is_the_film_where_nothing_else_says(first: bool, film: Path, tmp_path: Path) -> None:
    small = encode(tmp_path / "small.mp4", frames=moving(2, 32, 32), base=Fraction(1, 2), rate=2)
    parts = [(film, PLAIN), (small, PLAIN)]
    path = together(tmp_path / "two.ts", parts if first else parts[::-1])
    frames, _ = load_video(path)
    assert frames.shape == (30, 64, 96, 3)


@pytest.mark.parametrize("first", [True, False])
def test_cover_is_no_film(first: bool, film: Path, small: Path, tmp_path: Path) -> None:
    cover = together(tmp_path / "cover.mp4", [(small, Disposition.attached_pic)])
    with av.open(str(cover)) as container:
        assert container.streams.video[0].disposition == Disposition.attached_pic
    with pytest.raises(VideoError, match=r"cover\.mp4 has no film in it: its only picture is a cover"):
        load_video(cover)
    parts = [(small, Disposition.attached_pic), (film, PLAIN)]
    both = together(tmp_path / "both.mp4", parts if first else parts[::-1])
    assert len(load_video(both)[0]) == 30


def exif(orientation: int | None) -> bytes:
    """A TIFF block with a camera's name and an orientation."""
    entries = [struct.pack("<HHI4s", 0x0110, 2, 4, b"cam\0")]
    if orientation is not None:
        entries.append(struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def jpeg_with(data: bytes, orientation: int | None) -> bytes:
    block = b"Exif\0\0" + exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def png_with(data: bytes, orientation: int | None) -> bytes:
    block = b"eXIf" + exif(orientation)
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    return data[:33] + chunk + data[33:]


def picture(codec: str, pix_fmt: str) -> bytes:
    context: Any = av.CodecContext.create(codec, "w")
    context.height, context.width, context.pix_fmt, context.time_base = 40, 72, pix_fmt, Fraction(1)
    frame = av.VideoFrame.from_ndarray(moving(3, 40, 72)[2], format="rgb24").reformat(format=pix_fmt)
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])


@pytest.mark.parametrize("orientation", [None, *UPRIGHT])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_with_exif_stand_upright(suffix: str, orientation: int | None, tmp_path: Path) -> None:
    data = picture("png", "rgb24") if suffix == "png" else picture("mjpeg", "yuvj444p")
    (tmp_path / f"a.{suffix}").write_bytes(data)
    plain, _ = load_video(tmp_path)
    (tmp_path / f"a.{suffix}").write_bytes((png_with if suffix == "png" else jpeg_with)(data, orientation))
    frames, info = load_video(tmp_path)
    expected = UPRIGHT[orientation or 1](plain[0])
    assert np.array_equal(frames[0], expected) and (info.height, info.width) == expected.shape[:2]


@pytest.mark.parametrize("orientation", [1, 6, 2])
def test_mjpeg_films_with_exif_stand_upright(orientation: int, tmp_path: Path) -> None:
    source = encode(tmp_path / "plain.avi", "mjpeg", count=6, pix_fmt="yuvj420p")
    path = tmp_path / "exif.avi"
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        out = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.size:
                turned = av.Packet(jpeg_with(bytes(packet), orientation))
                turned.pts, turned.dts, turned.time_base = packet.pts, packet.dts, packet.time_base
                turned.is_keyframe, turned.stream = True, out
                write.mux(turned)
    frames, info = load_video(path, num_frames=3)
    expected = np.stack([UPRIGHT[orientation](frame) for frame in load_video(source, num_frames=3)[0]])
    assert np.array_equal(frames, expected) and (info.height, info.width) == expected.shape[1:3]
