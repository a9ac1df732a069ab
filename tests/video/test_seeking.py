"""Frames of a long clip: from the key frame before each, with the pixels that decoding from the start gives."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import sparrow.video.decode
from sparrow.video import load_video
from tests.video.encode import copy, decoded, encode, textured

GOP: dict[str, Any] = {"g": "12"}
OPEN: dict[str, Any] = {"x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:scenecut=0"}
REFRESH: dict[str, Any] = {"x264-params": "keyint=20:intra-refresh=1:scenecut=0"}
MPEG = {"bf": "2", "sc_threshold": "1000000000"}
# name: codec, options, pixels, whether decoding may begin at key frames
CLIPS: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "h264.mp4": ("libx264", GOP, "yuv420p", True),
    "h264.mkv": ("libx264", GOP, "yuv420p", True),
    "h264.ts": ("libx264", GOP, "yuv420p", True),
    "h264.flv": ("libx264", GOP, "yuv420p", True),
    "plain.avi": ("libx264", GOP | {"bf": "0"}, "yuv420p", True),
    "fragments.mp4": ("libx264", GOP | {"container_movflags": "frag_keyframe+empty_moov"}, "yuv420p", True),
    "open.mp4": ("libx264", OPEN, "yuv420p", True),
    "open.ts": ("libx264", OPEN, "yuv420p", True),
    "refresh.mkv": ("libx264", REFRESH, "yuv420p", False),
    "raw.h264": ("libx264", GOP, "yuv420p", False),
    "interlaced.ts": ("libx264", GOP | {"flags": "+ildct+ilme"}, "yuv420p", False),
    "h265.mkv": ("libx265", {"x265-params": "keyint=12:min-keyint=12:open-gop=1:log-level=none"}, "yuv420p", True),
    "mpeg2.ts": ("mpeg2video", GOP | MPEG, "yuv420p", True),
    "mpeg2.mpg": ("mpeg2video", GOP | MPEG, "yuv420p", True),
    "mpeg4.avi": ("mpeg4", GOP | {"bf": "2"}, "yuv420p", True),
    "vp8.webm": ("libvpx", GOP | {"auto-alt-ref": "1", "lag-in-frames": "16"}, "yuv420p", True),
    "vp9.webm": ("libvpx-vp9", GOP | {"cpu-used": "8"}, "yuv420p", True),
    "motion.avi": ("mjpeg", {}, "yuvj420p", True),
    "a.gif": ("gif", {}, "rgb8", False),
}


@pytest.fixture
def from_start(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every decoding from the start."""
    calls: list[int] = []
    real = sparrow.video.decode._from_start

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(sparrow.video.decode, "_from_start", counted)
    return calls


@pytest.mark.parametrize("name", CLIPS)
def test_pixels_are_those_of_full_decoding(name: str, tmp_path: Path, from_start: list[int]) -> None:
    codec, options, pix_fmt, trusted = CLIPS[name]
    path = encode(tmp_path / name, codec, frames=textured(75), pix_fmt=pix_fmt, **options)
    whole = decoded(path)
    assert len(whole) == 75
    for count in (3, 5, 24, 75):
        frames, info = load_video(path, num_frames=count)
        assert info.total_frames == 75 and info.indices == tuple(i * 75 // count for i in range(count))
        assert np.array_equal(frames, whole[list(info.indices)]), f"{count} frames"
    assert not from_start if trusted else from_start


def test_hidden_frames_of_vp8_are_not_counted(tmp_path: Path, from_start: list[int]) -> None:
    source, path = encode(tmp_path / "a.webm", "libvpx", count=60, g="20"), tmp_path / "b.webm"
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream: Any = read.streams.video[0]
        out = write.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in read.demux(stream) if p.size):
            versions = [bytes(packet)]
            if number % 20 == 7:
                # a copy that is decoded and not shown, as encoders put in for later frames to be drawn from
                versions.insert(0, bytes([versions[0][0] & ~16]) + versions[0][1:])
            for late, data in enumerate(versions):
                copied = av.Packet(data)
                copied.pts = copied.dts = packet.pts + late
                copied.time_base, copied.stream, copied.is_keyframe = packet.time_base, out, packet.is_keyframe
                write.mux(copied)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 63
    whole = decoded(path)
    frames, info = load_video(path, num_frames=6)
    assert info.total_frames == len(whole) == 60 and np.array_equal(frames, whole[::10]) and not from_start


def test_edit_list_and_negative_times(tmp_path: Path, from_start: list[int]) -> None:
    source = encode(tmp_path / "a.mkv", count=75, bf="0", **GOP)
    path = encode(
        tmp_path / "b.mkv", count=75, times=range(-20, 55), bf="0", container_avoid_negative_ts="disabled", **GOP
    )
    frames, info = load_video(path, num_frames=5)
    assert np.array_equal(frames, decoded(source)[list(info.indices)])


def test_cost_is_that_of_the_seeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "long.mp4", count=900, base=Fraction(1, 30), g="30", preset="ultrafast", bf="0")
    cost = 0
    real = sparrow.video.decode._frames_from

    def counted(*arguments: Any) -> Any:
        nonlocal cost
        for frame in real(*arguments):
            cost += 1
            yield frame

    monkeypatch.setattr(sparrow.video.decode, "_frames_from", counted)
    load_video(path, num_frames=4)
    assert cost <= 4 * 30, f"{cost} frames were decoded for 4"
    cost = 0
    load_video(path)
    assert cost == 900, "every frame once, without a seek"


def test_a_seek_that_leads_astray_is_seen(
    tmp_path: Path, from_start: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mp4", count=75, **GOP)
    real = sparrow.video.decode.read_packets

    def shifted(file: Path) -> Any:
        packets = real(file)
        packets.pts[40:] += 1
        return packets

    monkeypatch.setattr(sparrow.video.decode, "read_packets", shifted)
    frames, _ = load_video(path, num_frames=3)
    assert from_start and np.array_equal(frames, decoded(path)[[0, 25, 50]])


def test_copies_agree(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", count=75, **GOP)
    for suffix in ("mkv", "ts", "flv"):
        assert np.array_equal(
            load_video(copy(path, tmp_path / f"a.{suffix}"), num_frames=7)[0], load_video(path, num_frames=7)[0]
        )
