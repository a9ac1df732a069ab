"""Damage: what FFmpeg decodes whole is whole; what it doesn't is refused with its place, or skipped and reported."""

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.video import FAMILIES, VideoError, load_video, prepare
from tests.video.encode import decoded, encode, textured

# groups of ten in which every frame is drawn from the one before
GOP: dict[str, Any] = {"g": "10", "bf": "0", "x264-params": "scenecut=0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    for name in ("a.mp4", "a.mkv", "a.ts"):
        encode(path / name, frames=textured(60), **GOP)
    encode(path / "a.avi", "mpeg4", frames=textured(60), g="10")
    encode(path / "motion.avi", "mjpeg", frames=textured(60), pix_fmt="yuvj420p")
    return path


def packets(path: Path) -> list[tuple[float, int, int]]:
    """(second, place in the file, bytes) of every packet, in the order of the file."""
    with av.open(str(path)) as container:
        return [(float(p.pts * p.time_base), p.pos, p.size) for p in container.demux(video=0) if p.size]


def holed(path: Path, target: Path, number: int) -> float:
    """A copy in which a packet is noise; returns the packet's second."""
    second, at, size = packets(path)[number]
    data = bytearray(path.read_bytes())
    data[at : at + size] = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    target.write_bytes(data)
    return second


# ---- whole


def test_joined_recordings(folder: Path, tmp_path: Path) -> None:
    whole = decoded(folder / "a.ts")
    path = tmp_path / "joined.ts"
    path.write_bytes((folder / "a.ts").read_bytes() * 2)
    with av.open(str(path)) as container:
        assert any(packet.is_corrupt for packet in container.demux(video=0)), "FFmpeg doubts a packet"
    frames, info = load_video(path)
    assert np.array_equal(frames, np.concatenate([whole, whole])) and info.skipped == ()
    frames, info = load_video(path, num_frames=6, on_damage="skip")
    assert info.indices == (0, 20, 40, 60, 80, 100) and info.skipped == ()
    assert np.array_equal(frames, np.concatenate([whole, whole])[list(info.indices)])


def test_durations_that_were_left_behind(folder: Path, tmp_path: Path) -> None:
    data = (folder / "a.mkv").read_bytes()
    assert data.count(b"00:00:02.0") == 1
    (tmp_path / "stale.mkv").write_bytes(data.replace(b"00:00:02.0", b"00:10:02.0"))
    frames, info = load_video(tmp_path / "stale.mkv")
    assert np.array_equal(frames, decoded(folder / "a.mkv")) and info.fps == pytest.approx(30.0, rel=1e-3)
    data = bytearray((folder / "a.mp4").read_bytes())
    # media header: version, two times, units in a second, then their number
    at = data.index(b"mdhd") + 20
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") * 100).to_bytes(4, "big")
    (tmp_path / "stale.mp4").write_bytes(data)
    assert len(load_video(tmp_path / "stale.mp4")[0]) == 60


def test_an_index_that_is_cut_off_is_no_loss(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes((folder / "a.mkv").read_bytes()[:-10])
    assert np.array_equal(load_video(tmp_path / "a.mkv")[0], decoded(folder / "a.mkv"))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_recording_that_begins_amid_a_film(codec: str, tmp_path: Path) -> None:
    options = GOP if codec == "libx264" else {"x265-params": "keyint=10:bframes=0:log-level=none"}
    source, path = encode(tmp_path / "a.ts", codec, frames=textured(60), **options), tmp_path / "tail.ts"
    data, whole = source.read_bytes(), decoded(source)
    path.write_bytes(data[packets(source)[22][1] :])
    # seven or eight packets that are drawn from what isn't there, then three groups of ten
    assert len(packets(path)) in (37, 38)
    frames, info = load_video(path)
    assert np.array_equal(frames, whole[30:]) and info.total_frames == 30 and info.skipped == ()
    some, info = load_video(path, num_frames=4)
    assert info.indices == (0, 7, 15, 22) and info.total_frames == 30 and np.array_equal(some, frames[[0, 7, 15, 22]])
    # FFmpeg doubts the packet at the joint, so every packet is watched; those before the first key are not held to it
    path.write_bytes(path.read_bytes() + data)
    frames, info = load_video(path)
    assert np.array_equal(frames, np.concatenate([whole[30:], whole])) and info.skipped == ()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "motion.avi"])
def test_skipping_changes_nothing_in_whole_files(name: str, folder: Path) -> None:
    frames, info = load_video(folder / name, num_frames=7)
    skipping, same = load_video(folder / name, num_frames=7, on_damage="skip")
    assert np.array_equal(frames, skipping) and info == same and info.skipped == ()


# ---- damaged


def check_skip(path: Path, whole: np.ndarray, lost: range, **sampling: Any) -> Any:
    """The frames that skipping gives are whole, and at least `lost` is reported."""
    frames, info = load_video(path, on_damage="skip", **sampling)
    assert np.array_equal(frames, whole[list(info.indices)])
    assert not set(info.indices) & set(lost)
    assert info.skipped and all("cannot be decoded whole" in text for text in info.skipped)
    return info


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_damaged_packet(name: str, folder: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / name, decoded(folder / name)
    begin = packets(folder / name)[0][0]
    second = holed(folder / name, path, 23)
    with pytest.raises(
        VideoError, match=rf"{re.escape(name)} is truncated or corrupt: .* at \d+\.\d\d s is damaged"
    ) as caught:
        load_video(path)
    place = float(re.search(r"at (\d+\.\d\d) s", str(caught.value))[1])  # type: ignore[index]
    assert abs(place - second) < 0.4, f"{place} for {second}"
    assert second - begin == pytest.approx(23 / 30, abs=1e-3)
    info = check_skip(path, whole, range(23, 30))
    assert info.indices == (*range(23), *range(30, 60)) and info.total_frames == 60
    times = f"{second:.2f} to {second + 6 / 30:.2f} s"
    assert info.skipped == (f"frames 23 to 29 ({times}) cannot be decoded whole",)
    info = check_skip(path, whole, range(23, 30), num_frames=10)
    assert len(info.indices) == 10 and info.fps == pytest.approx(30.0, rel=1e-3)


@pytest.mark.parametrize("live", ["0", "1"])
def test_matroska_packets_lost_without_a_word(live: str, tmp_path: Path) -> None:
    source = encode(
        tmp_path / "a.mkv", frames=textured(60), container_live=live, container_cluster_time_limit="500", **GOP
    )
    whole, path = decoded(source), tmp_path / "bad.mkv"
    assert len(load_video(source)[0]) == 60
    holed(source, path, 23)
    with av.open(str(path)) as container:
        lost = 60 - sum(not frame.is_corrupt for frame in container.decode(video=0))
    assert lost > 0, "FFmpeg goes on behind the damage"
    with pytest.raises(VideoError, match=r"what follows at 0\.7\d s is damaged"):
        load_video(path)
    frames, info = load_video(path, on_damage="skip")
    # the header counts the lost ones nowhere: frames after them have lower numbers
    assert np.array_equal(frames[:23], whole[:23]) and np.array_equal(frames[-30:], whole[-30:])
    assert len(frames) == len(info.indices) < 60
    assert re.match(r"what follows at 0\.7\d s is damaged, some of it may be lost", info.skipped[0])


def test_frames_beside_the_damage_can_be_had(folder: Path, tmp_path: Path) -> None:
    holed(folder / "a.mp4", tmp_path / "a.mp4", 23)
    frames, info = load_video(tmp_path / "a.mp4", num_frames=2)
    assert info.indices == (0, 30) and np.array_equal(frames, decoded(folder / "a.mp4")[[0, 30]])


def test_lost_transport_packet(folder: Path, tmp_path: Path) -> None:
    data, whole = (folder / "a.ts").read_bytes(), decoded(folder / "a.ts")
    _, at, size = packets(folder / "a.ts")[23]
    assert size > 400
    cut = (at // 188 + 1) * 188
    path = tmp_path / "lost.ts"
    path.write_bytes(data[:cut] + data[cut + 188 :])
    with pytest.raises(VideoError, match=r"at \d\.\d\d s is damaged"):
        load_video(path)
    check_skip(path, whole, range(23, 30))


def test_pictures_that_stand_alone_are_lost_alone(folder: Path, tmp_path: Path) -> None:
    _, at, size = packets(folder / "motion.avi")[-1]
    data = (folder / "motion.avi").read_bytes()
    (tmp_path / "motion.avi").write_bytes(data[: at + size // 2])
    with pytest.raises(VideoError, match="truncated"):
        load_video(tmp_path / "motion.avi")
    frames, info = load_video(tmp_path / "motion.avi", on_damage="skip")
    assert info.indices == tuple(range(59)) and np.array_equal(frames, decoded(folder / "motion.avi")[:59])
    assert any("frame 59 (1.97 to 1.97 s) cannot be decoded whole" in text for text in info.skipped)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "faststart.mp4", "fragments.mp4"])
def test_truncated_files_give_what_is_there(name: str, folder: Path, tmp_path: Path) -> None:
    flags = {"faststart.mp4": "faststart", "fragments.mp4": "frag_keyframe+empty_moov"}
    source = folder / name
    if name in flags:
        source = encode(tmp_path / "whole.mp4", frames=textured(60), container_movflags=flags[name], **GOP)
    data, whole = source.read_bytes(), decoded(source)
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(VideoError, match="truncated"):
        load_video(path)
    frames, info = load_video(path, on_damage="skip")
    assert 20 <= len(frames) < 50 and info.skipped
    # of the last picture a part may be there without anybody's knowing
    assert np.array_equal(frames[:-1], whole[list(info.indices)][:-1])


def test_bare_stream(folder: Path, tmp_path: Path) -> None:
    source = encode(tmp_path / "a.h264", frames=textured(60), **GOP)
    whole, path = decoded(source), tmp_path / "bad.h264"
    with av.open(str(source)) as container:
        at, size = [(p.pos, p.size) for p in container.demux(video=0) if p.size][23]
    data = source.read_bytes()
    path.write_bytes(data[: at + size // 2] + data[at + size :])
    with pytest.raises(VideoError, match="truncated or corrupt"):
        load_video(path)
    frames, info = load_video(path, on_damage="skip")
    # nothing says which packet a frame was in, so some more are given up
    assert info.skipped and 35 <= len(frames) < 60
    assert all(any(np.array_equal(frame, other) for other in whole) for frame in frames)


def test_nothing_whole(folder: Path, tmp_path: Path) -> None:
    source = encode(tmp_path / "one.mp4", frames=textured(10), **GOP)
    holed(source, tmp_path / "bad.mp4", 0)
    for on_damage in ("raise", "skip"):
        with pytest.raises(VideoError, match=r"bad\.mp4 is truncated or corrupt"):
            load_video(tmp_path / "bad.mp4", on_damage=on_damage)


def test_more_frames_than_are_whole(folder: Path, tmp_path: Path) -> None:
    holed(folder / "a.mp4", tmp_path / "a.mp4", 23)
    with pytest.raises(VideoError, match=r"num_frames must not exceed the 5\d frames"):
        load_video(tmp_path / "a.mp4", num_frames=60, on_damage="skip")


def test_unknown_choice(folder: Path) -> None:
    with pytest.raises(VideoError, match="on_damage must be one of raise, skip, got 'ignore'"):
        load_video(folder / "a.mp4", on_damage="ignore")


def test_prepare_warns_of_what_it_left_out(folder: Path, tmp_path: Path) -> None:
    holed(folder / "a.mp4", tmp_path / "a.mp4", 23)
    words = build_tokenizer(400)
    with pytest.raises(VideoError, match="is damaged"):
        prepare(FAMILIES["qwen2_5_vl"], words, "What moves?", [tmp_path / "a.mp4"], num_frames=30)
    with pytest.warns(UserWarning, match=r"a\.mp4: skipped: frames 23 to 29 .* cannot be decoded whole"):
        inputs = prepare(
            FAMILIES["qwen2_5_vl"], words, "What moves?", [tmp_path / "a.mp4"], num_frames=30, on_damage="skip"
        )
    assert inputs["video_grid_thw"][0, 0] == 15
