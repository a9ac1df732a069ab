"""Video files, folders and arrays to frames: containers, clocks, rotation, damage, hostile input."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import sparrow.video.decode
from sparrow.video import FAMILIES, VideoError, load_video
from tests.video.golden.cases import clip

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "python" / "sparrow" / "assets" / "demo.mp4"


def write(path: Path, frames: np.ndarray, codec: str = "libx264", pix_fmt: str = "yuv444p", **options: Any) -> Path:
    """Encodes uint8 [T, H, W, 3] at 10 frames per second, or at the times `pts` in tenths of a second."""
    pts = options.pop("pts", range(len(frames)))
    with av.open(str(path), "w", options=options) as container:
        quality = {"crf": "12"} if codec == "libx264" else {}
        stream: Any = container.add_stream(codec, rate=10, options=quality)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.bit_rate = 4_000_000
        for time, array in zip(pts, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def smooth(count: int = 24, height: int = 96, width: int = 128) -> np.ndarray:
    """Frames that survive compression: a ground that brightens over time and a bar that moves."""
    frames = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        frames[i] = 20 + 8 * i
        frames[i, :, 4 * i : 4 * i + 12, 0] = 240
    return frames


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "a.mp4", smooth(), movflags="faststart")


@pytest.mark.parametrize("suffix", ["mp4", "frag.mp4", "mkv", "webm", "avi", "ts", "mov", "gif"])
def test_containers(suffix: str, tmp_path: Path) -> None:
    frames = smooth()
    # gif: 256 colours and no rate below 1/100 s; webm and mpeg4: half the colour resolution
    codec, pix_fmt, allowed = {
        "webm": ("libvpx", "yuv420p", 4.0),
        "avi": ("mpeg4", "yuv420p", 4.0),
        "gif": ("gif", "rgb8", 20.0),
    }.get(suffix, ("libx264", "yuv444p", 2.0))
    options = {"movflags": "frag_keyframe+empty_moov"} if suffix == "frag.mp4" else {}
    path = write(tmp_path / f"clip.{suffix}", frames, codec, pix_fmt, **options)
    got, info = load_video(path, num_frames=6)
    assert info.total_frames == 24 and info.indices == (0, 4, 8, 12, 16, 20) and got.dtype == np.uint8
    assert info.fps == pytest.approx(10.0, rel=0.05) and (info.height, info.width) == (96, 128)
    error = np.abs(got.astype(float) - frames[list(info.indices)])
    assert error.mean() < allowed, f"mean error {error.mean():.2f}"


def test_frames_are_those_of_transformers() -> None:
    hf = pytest.importorskip("transformers.video_utils")
    theirs, metadata = hf.load_video(str(DEMO), num_frames=7, backend="pyav")
    ours, info = load_video(DEMO, num_frames=7)
    assert np.array_equal(ours, theirs) and list(info.indices) == list(metadata.frames_indices)


def test_odd_size_and_single_frame(tmp_path: Path) -> None:
    frames = smooth(1, 97, 131)
    path = write(tmp_path / "one.mp4", frames)
    for name, settings in FAMILIES.items():
        got, info = load_video(path, settings)
        assert got.shape == (1, 97, 131, 3) and info.indices == (0,), name
    assert np.abs(got.astype(float) - frames).mean() < 2.0


def test_variable_frame_rate_counts_frames(tmp_path: Path) -> None:
    times = [0, 3, 7, 20, 21, 40, 77, 78, 79, 110]
    path = write(tmp_path / "vfr.mp4", smooth(10), pts=times)
    got, info = load_video(path, num_frames=10)
    assert info.total_frames == 10
    assert np.abs(got.astype(float) - smooth(10)).mean() < 2.0


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2, (1, 2))),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
        ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
    ],
    ids=["quarter", "half", "three_quarters", "mirrored"],
)
def test_rotation_is_applied(mp4: Path, tmp_path: Path, matrix: tuple[int, ...], upright: Any) -> None:
    data = bytearray(mp4.read_bytes())
    # the track header's matrix (a b u c d v x y w) lies 40 bytes after its tag's end
    at = data.index(b"tkhd") + 44
    a, b, c, d = (v << 16 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    got, info = load_video(tmp_path / "turned.mp4", num_frames=3)
    expected = upright(load_video(mp4, num_frames=3)[0])
    assert np.array_equal(got, expected) and (info.height, info.width) == expected.shape[1:3]


def test_edit_list_hides_frames(mp4: Path, tmp_path: Path) -> None:
    path, hidden = tmp_path / "edited.mp4", 10
    with av.open(str(mp4)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream: Any = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts -= int(hidden / 10 / stream.time_base)
                packet.dts -= int(hidden / 10 / stream.time_base)
                packet.stream = copy
                target.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 24, "the header still counts them"
    frames, info = load_video(path, num_frames=2)
    assert info.total_frames == 24 - hidden and info.indices == (0, 7)
    assert np.array_equal(frames, load_video(mp4)[0][[hidden, hidden + 7]])


def test_last_packet_cut_short(mp4: Path, tmp_path: Path) -> None:
    # a threaded decoder would drop it without a word
    (tmp_path / "cut.mp4").write_bytes(mp4.read_bytes()[:-10])
    with pytest.raises(VideoError, match=r"a packet at .* is damaged"):
        load_video(tmp_path / "cut.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "frag.mp4", "mkv", "avi"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.6, 0.85])
def test_truncated(suffix: str, kept: float, tmp_path: Path) -> None:
    options = {"mp4": {"movflags": "faststart"}, "frag.mp4": {"movflags": "frag_keyframe+empty_moov"}}.get(suffix, {})
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = write(tmp_path / f"clip.{suffix}", smooth(), codec, "yuv420p", **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(VideoError, match="truncated"):
        load_video(path)


def test_damaged_bytes_are_an_error_or_change_nothing_else(mp4: Path, tmp_path: Path) -> None:
    data, rng, errors = mp4.read_bytes(), np.random.default_rng(0), 0
    for _ in range(30):
        at, noise = int(rng.integers(len(data))), rng.integers(0, 256, 400).astype(np.uint8).tobytes()
        path = tmp_path / "damaged.mp4"
        path.write_bytes((data[:at] + noise + data[at + 400 :])[: len(data)])
        try:
            frames, info = load_video(path)
        except VideoError:
            errors += 1
        else:
            assert len(frames) == len(info.indices) and frames.dtype == np.uint8
    assert errors > 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello\n" * 500,
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        bytes(9999),
    ],
    ids=["empty", "text", "picture", "zeros"],
)
def test_not_a_video(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"clip\.mp4 is not a video"):
        load_video(path)


def test_playlists_are_not_followed(mp4: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\na.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile a.mp4\n")
    for name in ("list.m3u8", "list.ffconcat"):
        with pytest.raises(VideoError, match="is not a video"):
            load_video(tmp_path / name)


def test_no_video_stream_and_missing_and_too_large(mp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(VideoError, match="no readable video stream"):
        load_video(tmp_path / "sound.mkv")
    with pytest.raises(
        FileNotFoundError, match=r"source must be an existing video file or folder, got '.*nothing\.mp4'"
    ):
        load_video(tmp_path / "nothing.mp4")
    with pytest.raises(VideoError, match="must not be given for a video with its own rate"):
        load_video(mp4, source_fps=5)
    monkeypatch.setattr(sparrow.video.decode, "MAX_BYTES", 100_000)
    with pytest.raises(VideoError, match=r"24 frames of 96x128 take .* pass a smaller num_frames or fps"):
        load_video(mp4)


def test_progress_and_name_with_pattern(mp4: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    # a name that FFmpeg would read as a sequence of pictures, or as a protocol
    for name in ("clip%03d.mp4", "concat:a.mp4"):
        path = tmp_path / name
        path.write_bytes(mp4.read_bytes())
        load_video(path, num_frames=3, progress=lambda done, wanted: calls.append((done, wanted)))
    assert calls == [(1, 3), (2, 3), (3, 3)] * 2


def test_folder_of_pictures(tmp_path: Path) -> None:
    frames = clip((11, 20, 31), 0)
    for i, frame in enumerate(frames):
        codec: Any = av.CodecContext.create("png", "w")
        codec.height, codec.width, codec.pix_fmt, codec.time_base = 20, 31, "rgb24", Fraction(1, 1)
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        (tmp_path / f"frame{i}.png").write_bytes(
            b"".join(bytes(p) for p in [*codec.encode(picture), *codec.encode(None)])
        )
    (tmp_path / "notes.txt").write_text("not a picture")
    got, info = load_video(tmp_path)
    assert np.array_equal(got, frames) and info.fps is None and info.indices == tuple(range(11))
    assert np.array_equal(load_video(tmp_path, fps=2, source_fps=4)[0], frames[[0, 2, 4, 6, 8]])
    (tmp_path / "frame5.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(VideoError, match=r"frame5\.png"):
        load_video(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="must hold pictures"):
        load_video(tmp_path / "empty")
