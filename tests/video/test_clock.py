"""How fast a file's frames follow each other: frames over the time they span, whatever its header says."""

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from sparrow.video import FAMILIES, load_video
from sparrow.video.sampling import sample_indices
from tests.video.encode import encode

MS = Fraction(1, 1000)


def irregular(count: int) -> list[int]:
    """Milliseconds at which a browser's recorder takes frames."""
    rng, times = random.Random(1), [0]
    for _ in range(count - 1):
        times.append(times[-1] + rng.randint(15, 700))
    return times


def without_default_duration(path: Path) -> Path:
    """Puts a Void element in place of what browsers and recorders do not write."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x23\xe3\x83")
    size = (data[at + 3] & 0x7F) + 4
    data[at : at + size] = bytes([0xEC, 0x80 | (size - 2)]) + bytes(size - 2)
    path.write_bytes(data)
    return path


SCREEN = [33 * i for i in range(60)] + [2000 + 2000 * i for i in range(1, 31)]


@pytest.mark.parametrize(
    ("name", "codec", "times", "nominal"),
    [
        ("a.webm", "libvpx", irregular(100), False),
        ("a.mkv", "libx264", SCREEN, False),
        ("a.mkv", "libx264", SCREEN, True),
        ("a.webm", "libvpx", irregular(100), True),
    ],
)
def test_matroska(name: str, codec: str, times: Sequence[int], nominal: bool, tmp_path: Path) -> None:
    path = encode(tmp_path / name, codec, times=times, base=MS, count=len(times))
    path = path if nominal else without_default_duration(path)
    frames, info = load_video(path, FAMILIES["qwen2_5_vl"])
    assert info.fps is not None
    span = times[-1] / 1000
    # the last frame may be said to show for as long as one of the header's rate
    assert len(times) / (span + 0.05) <= info.fps <= len(times) / span
    seconds = info.total_frames / info.fps
    assert seconds == pytest.approx(span, abs=0.05)
    assert len(frames) == min(int(2 * seconds) // 2 * 2, len(times) // 2 * 2)
    assert info.sampled_fps == pytest.approx(min(2.0, info.fps), rel=0.02)
    _, info = load_video(path, FAMILIES["qwen3_vl"])
    assert info.fps is not None and info.indices[-1] / info.fps == pytest.approx(span, rel=0.02)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mp4", "libx264"), ("a.ts", "libx264")])
def test_dropped_frames(name: str, codec: str, tmp_path: Path) -> None:
    times = [i for i in range(180) if i < 30 or i % 3 == 0]
    path = encode(tmp_path / name, codec, times=times, count=len(times), bf="0")
    _, info = load_video(path)
    assert info.total_frames == len(times) == 80 and info.fps is not None
    # the last frame shows for one to three thirtieths
    assert 80 / (180 / 30) <= info.fps <= 80 / (178 / 30)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_held_last_frame(name: str, tmp_path: Path) -> None:
    path = encode(tmp_path / name, count=20, base=Fraction(1, 10), rate=10, last=80, bf="0")
    _, info = load_video(path)
    # 1.9 s, then 8 s of the last
    assert info.fps == pytest.approx(20 / 9.9) and info.total_frames == 20


@pytest.mark.parametrize("frames_a_second", [24, 30, 50])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.h264", "libx264"), ("a.hevc", "libx265"), ("a.m2v", "mpeg2video"), ("a.mp4", "libx264"), ("a.ts", "libx264"),
     ("a.flv", "libx264"), ("a.avi", "mpeg4"), ("a.mpg", "mpeg2video"), ("a.mov", "mjpeg")],
)  # fmt: skip
def test_constant_rates_are_exact(name: str, codec: str, frames_a_second: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = encode(tmp_path / name, codec, rate=frames_a_second, base=Fraction(1, frames_a_second), **options,
                  pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")  # fmt: skip
    _, info = load_video(path)
    # flv counts in milliseconds
    assert info.fps == (pytest.approx(frames_a_second, rel=1e-3) if name == "a.flv" else frames_a_second)


def test_gif(tmp_path: Path) -> None:
    times = [7 * i for i in range(29)] + [250]
    path = encode(tmp_path / "a.gif", "gif", count=30, pix_fmt="rgb8", times=times, base=Fraction(1, 100), last=50)
    assert load_video(path)[1].fps == pytest.approx(30 / 3.0)


def test_times_that_begin_elsewhere(tmp_path: Path) -> None:
    for times in (range(-15, 45), range(900, 960)):
        path = encode(tmp_path / "a.mkv", times=times, bf="0", container_avoid_negative_ts="disabled")
        with av.open(str(path)) as container:
            assert next(container.demux(video=0)).pts != 0
        assert load_video(path)[1].fps == pytest.approx(30.0, rel=1e-3)


def test_single_frame_lasts_as_long_as_it_says(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", count=1, base=Fraction(1, 10), rate=10, last=50)
    assert load_video(path)[1].fps == pytest.approx(0.2)


def test_joined_recordings_take_both_times(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(path.read_bytes() * 3)
    _, info = load_video(joined)
    assert info.total_frames == 180 and info.fps == pytest.approx(30.0)


def test_a_jump_of_the_clock_is_no_time_and_slides_are(tmp_path: Path) -> None:
    recordings = [encode(tmp_path / "early.ts"), encode(tmp_path / "late.ts", times=range(90000, 90060))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(path.read_bytes() for path in recordings))
    assert load_video(joined)[1].fps == pytest.approx(30.0)
    slides = encode(tmp_path / "slides.ts", times=range(0, 300, 15), count=20, base=Fraction(1), rate=1, bf="0")
    _, info = load_video(slides)
    assert info.total_frames == 20 and info.fps == pytest.approx(1 / 15, rel=0.06)


def test_indices_are_those_of_the_family_at_the_true_rate(tmp_path: Path) -> None:
    path = without_default_duration(encode(tmp_path / "a.mkv", times=SCREEN, base=MS, count=len(SCREEN)))
    for name, settings in FAMILIES.items():
        _, info = load_video(path, settings, num_frames=None if settings.fps else 8)
        wanted = (None, settings.fps) if settings.fps else (8, None)
        assert info.indices == sample_indices(90, 90 / 62.0, settings, *wanted), name
