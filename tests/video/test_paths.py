"""What a path may name: files and folders of this machine; nothing that would be waited for."""

import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparrow
from sparrow.video import VideoError, load_settings, load_video
from sparrow.video.paths import to_path

DEMO = Path(sparrow.__path__[0]) / "assets" / "demo.mp4"


def within(seconds: float, function: Any, *arguments: Any) -> Any:
    """The result or exception of a call that must not wait; a thread, since open(2) of a FIFO heeds no Python timer."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append(function(*arguments))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"{function.__name__}{arguments} still waits after {seconds} s"
    return outcome[0]


def picture(path: Path, size: int = 8) -> Path:
    import av

    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png")
        stream.width = stream.height = size
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), size, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_what_would_be_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.mp4")
    os.mkfifo(tmp_path / "x.npy")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "x.mp4")
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s.mp4")
        for path, kind in (
            (tmp_path / "x.mp4", "a FIFO"),
            (tmp_path / "x.npy", "a FIFO"),
            (tmp_path / "link.mp4", "a FIFO"),
            (f"file://{tmp_path}/x.mp4", "a FIFO"),
            (f"{short}/s.mp4", "a socket"),
            ("/dev/zero", "a character device"),
        ):
            error = within(10, load_video, path)
            assert isinstance(error, VideoError) and str(path) in str(error)
            assert f"is {kind}" in str(error) and "must be a regular file or a folder" in str(error)


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="no such kernel file")
def test_a_file_of_the_kernel_is_not_waited_for() -> None:
    error = within(10, load_video, "/proc/kmsg")
    assert isinstance(error, VideoError) and str(error) == "/proc/kmsg is not a video, nor frames: the file is empty"


def test_pictures_are_looked_at_before_one_is_opened(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    for name, make, kind in (
        ("2.png", os.mkfifo, "a FIFO"),
        ("3.jpg", os.mkdir, "a folder"),
    ):
        make(tmp_path / name)
        error = within(10, load_video, tmp_path)
        assert isinstance(error, VideoError) and f"{tmp_path / name} is {kind}" in str(error)
        (os.remove if kind == "a FIFO" else os.rmdir)(tmp_path / name)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match=r"a picture must be an existing .*gone\.png"):
        load_video(tmp_path)


def test_pictures_by_name(tmp_path: Path) -> None:
    files = [str(picture(tmp_path / f"{i}.png")) for i in range(3)]
    frames, info = load_video(files, source_fps=2.0)
    assert frames.shape == (3, 8, 8, 3) and info.fps == 2.0
    assert np.array_equal(frames, load_video(tmp_path)[0])
    assert np.array_equal(frames, load_video([f"file://{name}" for name in files])[0])
    # only those that are sampled
    (tmp_path / "1.png").write_bytes(b"damaged")
    assert load_video(tmp_path, num_frames=1)[1].indices == (0,)
    with pytest.raises(VideoError, match=r"1\.png is not a picture"):
        load_video(tmp_path)
    with pytest.raises(VideoError, match=r"https://x\.org/1\.png"):
        load_video(["https://x.org/1.png"])
    with pytest.raises(VideoError, match="sequence of arrays, got list of str"):
        load_video([files[0], "b.mp4"])


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("", VideoError, "source must be a path, got an empty one"),
        (
            "x" * 300 + ".mp4",
            VideoError,
            r"must be a path that can be read, got 'x+'\.\.\. \(304 characters\): File name",
        ),
        ("/tmp/a\0b.mp4", VideoError, r"must be a path that can be read, got '/tmp/a\\x00b.mp4'"),
        ("/tmp/\ud800.mp4", VideoError, "must be a path that can be read"),
        (f"{DEMO}/x.mp4", FileNotFoundError, "must be an existing video file or folder"),
        ("http://x.org/a.mp4", VideoError, "addresses are not fetched, got 'http://x.org/a.mp4'"),
        ("S3://bucket/a.mp4", VideoError, "addresses are not fetched"),
        ("data:video/mp4;base64," + "A" * 9999, VideoError, r"data addresses are not read, got .*\.\.\. \(10021 char"),
        ("file://host/a.mp4", VideoError, "must name a file of this machine"),
        ("file://a.mp4", VideoError, "must name a file of this machine"),
        ("file:///no/such%20file.mp4", FileNotFoundError, "got 'file:///no/such%20file.mp4'"),
        ("file:///tmp/a%00b.mp4", VideoError, "must be a path that can be read"),
    ],
)
def test_paths_that_are_refused(source: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_video(source)
    assert len(str(caught.value)) < 500


def test_loops_and_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    with pytest.raises(VideoError, match=r"loop\.mp4'?: Too many levels"):
        load_video(tmp_path / "loop.mp4")

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.npy").write_bytes(b"0")
    picture(tmp_path / "1.png")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", denied)
        with pytest.raises(VideoError, match="must be a folder that can be read: Permission denied"):
            load_video(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        with pytest.raises(VideoError, match=r"a\.npy is not a readable \.npy file.*Permission denied"):
            load_video(tmp_path / "a.npy")
    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(VideoError, match=r"must be a path that can be read, got .*Permission denied"):
        load_video(tmp_path / "a.mp4")


def test_addresses_are_decoded(tmp_path: Path) -> None:
    odd = tmp_path / "ä b#1?x=%41.mp4"
    odd.symlink_to(DEMO)
    address = f"file://{tmp_path}/%C3%A4 b#1?x=%2541.mp4"
    for source in (str(odd), odd, address, address.replace("file://", "FILE://localhost"), odd.as_uri()):
        assert to_path(source) == odd
    assert load_video(address, num_frames=1)[0].shape[0] == 1


@pytest.mark.parametrize("folder", ["", "x" * 300, "a\0b", "/dev/null", 7])
def test_checkpoint_folders(folder: Any) -> None:
    with pytest.raises((FileNotFoundError, VideoError), match="folder must be"):
        load_settings(folder)
