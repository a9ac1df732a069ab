"""Arrays and .npy/.npz files as videos."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparrow.video import VideoError, load_video
from tests.video.golden.cases import clip


def test_arrays(tmp_path: Path) -> None:
    frames = clip((5, 9, 7), 1)
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
