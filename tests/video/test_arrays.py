"""Arrays and .npy/.npz files as videos."""

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparrow.video import VideoError, load_video
from tests.video.golden.cases import clip


def test_arrays(tmp_path: Path) -> None:
    # larger than the moving square, or all frames are the same
    frames = clip((5, 19, 17), 1)
    np.save(tmp_path / "a.npy", frames)
    np.savez(tmp_path / "a.npz", frames=frames)
    sources = [frames, torch.from_numpy(frames), list(frames), tmp_path / "a.npy", str(tmp_path / "a.npz")]
    for source in sources:
        got, info = load_video(source, num_frames=2)
        assert np.array_equal(got, frames[[0, 2]]) and info.total_frames == 5 and info.fps is None
    # a view with strides of its own
    assert np.array_equal(load_video(frames[::-2, ::-1])[0], frames[::-2, ::-1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "must be uint8 with values 0..255, got dtype float32"),
        (torch.zeros(2, 8, 8, 3), "must be uint8 with values 0..255, got dtype torch.float32"),
        (np.zeros((2, 8, 8), np.uint8), "grayscale"),
        (np.zeros((2, 8, 8, 1), np.uint8), "grayscale"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"got \[2, 8, 8, 4\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "channels come last"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one frame"),
        (np.zeros((2, 0, 8, 3), np.uint8), "at least one frame and one pixel"),
        ([], "at least one frame"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "frames of one size"),
        (7, "must be a path, an array or a sequence of arrays, got int"),
        (["a.mp4"], "must be a path"),
    ],
)
def test_wrong_arrays(source: Any, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        load_video(source)


def test_wrong_numpy_files(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    full = clip((5, 9, 7), 1)
    np.save(tmp_path / "short.npy", full)
    os.truncate(tmp_path / "short.npy", 500)
    for name, message in [("text", "not a readable"), ("pickled", "not a readable"), ("short", "not a readable")]:
        with pytest.raises(VideoError, match=rf"{name}\.npy is {message}"):
            load_video(tmp_path / f"{name}.npy")
    with pytest.raises(VideoError, match=r"two\.npz must hold exactly one array"):
        load_video(tmp_path / "two.npz")


def header(shape: str, descr: str = "'|u1'", length: int | None = None) -> bytes:
    """The head of a .npy file, format 2.0, that says this and nothing that is true."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) if length is None else length) + text


def zipped(data: bytes, name: str = "a.npy", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


GOOD = header("(4, 28, 28, 3)") + bytes(4 * 28 * 28 * 3)
FILES = {
    "empty.npy": (b"", "the file is empty"),
    "magic.npy": (b"\x93NUMPY", "is not a readable"),
    "version.npy": (b"\x93NUMPY\x09\x00" + GOOD[8:], "of version 1.0 or 2.0"),
    "open_bracket.npy": (header("(4, 28, 28, 3") + GOOD[-9408:], "is not a readable"),
    "deep.npy": (header("(" * 4000 + "1" + ")" * 4000), "is not a readable"),
    "long_header.npy": (header("(4, 28, 28, 3)", length=1 << 31) + GOOD[-9408:], "at most 10000 bytes, got 2147483648"),
    "beyond.npy": (header("(9000000, 90000, 90000, 3)") + b"0", "cut short: its header promises an array of shape"),
    "overflow.npy": (header(f"({1 << 62}, 4, 4, 3)") + b"0", "cut short: its header promises an array of shape"),
    "negative.npy": (header("(-4, 28, 28, 3)") + GOOD[-9408:], "at least one frame and one pixel"),
    "scalar.npy": (header("()") + b"0", r"must have shape \[frames, height, width, 3\], got \[\]"),
    "float.npy": (header("(1, 1, 1, 3)", "'<f4'") + bytes(12), "must be uint8 with values 0..255, got dtype float32"),
    "objects.npy": (header("(1, 1, 1, 3)", "'|O'") + b"cos\nsystem\n", "holds Python objects"),
    "type.npy": (header("(1, 1, 1, 3)", "'nonsense'") + bytes(3), "is not a readable"),
    "half.npz": (zipped(GOOD)[:200], "is not a readable"),
    "checksum.npz": (zipped(GOOD, method=zipfile.ZIP_STORED).replace(bytes(9000), bytes(8999) + b"x"), "Bad CRC-32"),
    "stream.npz": (zipped(GOOD)[:60] + b"\xff" * 9 + zipped(GOOD)[69:], "is not a readable"),
    "none.npz": (b"PK\x05\x06" + bytes(18), r"must hold exactly one array, got \[\]"),
    "text.npz": (zipped(b"hello"), "does not begin as NumPy's format"),
    "cut.npz": (zipped(GOOD[:-1]), "is not a readable"),
    "more.npz": (zipped(GOOD + b"0"), "goes on after its end"),
    "objects.npz": (zipped(header("(1, 1, 1, 3)", "'|O'")), "holds Python objects"),
    "lzma.npz": (zipped(GOOD, method=zipfile.ZIP_LZMA), "in a way that NumPy does not use"),
    "bomb.npz": (zipped(header("(200000, 200, 200, 3)") + bytes(9)), "the frames take 22 GiB, at most 16 are read"),
    "bomb_header.npz": (zipped(header("(1, 1, 1, 3)", length=1 << 31)), "at most 10000 bytes"),
    "bomb_float.npz": (zipped(header("(99999, 99999, 9999, 3)", "'<f8'")), "must be uint8"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_numpy_files(name: str, tmp_path: Path) -> None:
    data, message = FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VideoError, match=message) as caught:
        load_video(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_whole_numpy_files(tmp_path: Path) -> None:
    frames = clip((5, 19, 17), 1)
    np.save(tmp_path / "columns.npy", np.asfortranarray(frames))
    np.savez_compressed(tmp_path / "packed.npz", frames)
    (tmp_path / "zip_inside.npy").write_bytes(b"")
    # an archive's end inside the pixels makes no archive of it
    marked = frames.copy()
    marked.reshape(-1)[-22:] = np.frombuffer(b"PK\x05\x06" + bytes(18), np.uint8)
    np.save(tmp_path / "zip_inside.npy", marked)
    for name, wanted in (("columns.npy", frames), ("packed.npz", frames), ("zip_inside.npy", marked)):
        got, _ = load_video(tmp_path / name)
        assert type(got) is np.ndarray and np.array_equal(got, wanted)
        os.remove(tmp_path / name)
        assert np.array_equal(got, wanted)


def test_few_frames_of_a_long_file(tmp_path: Path) -> None:
    """Only the frames asked for are read: the whole would be 20 GiB."""
    name = tmp_path / "long.npy"
    name.write_bytes(header("(700000, 100, 100, 3)"))
    os.truncate(name, name.stat().st_size + 700000 * 30000)
    frames, info = load_video(name, num_frames=3)
    assert frames.shape == (3, 100, 100, 3) and info.total_frames == 700000
    with pytest.raises(VideoError, match="the frames take 20 GiB, at most 16 are read"):
        load_video(name)


def test_tensors_without_values() -> None:
    for source in (
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device="meta"),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8).to_sparse(),
        [torch.zeros(8, 8, 3, dtype=torch.uint8, device="meta")],
    ):
        with pytest.raises(VideoError, match="source must be a dense tensor with values"):
            load_video(source)


def test_lists_of_other_things() -> None:
    for source, message in (
        ([np.zeros((8, 8, 3), np.uint8), None], "got list of NoneType, ndarray"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), bool)], "a frame of dtype bool"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], r"must have shape \[frames, height, width, 3\]"),
        ({"a": 1}, "got dict"),
        (b"a.mp4", "got bytes"),
        (None, "got NoneType"),
    ):
        with pytest.raises(VideoError, match=message):
            load_video(source)  # type: ignore[arg-type]
