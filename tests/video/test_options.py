"""Options of a video part: what they select and how large frames become, as with qwen-vl-utils 0.0.14."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import sparrow
from sparrow.miniature.tokenizer import build_tokenizer
from sparrow.video import FAMILIES, PatchSettings, VideoError, load_video, prepare
from sparrow.video.load import frames_between
from sparrow.video.options import VideoOptions
from tests.video.encode import encode
from tests.video.golden.cases import clip

DEMO = str(Path(sparrow.__path__[0]) / "assets" / "demo.mp4")
QWEN, QWEN3 = FAMILIES["qwen2_5_vl"], FAMILIES["qwen3_vl"]
assert isinstance(QWEN, PatchSettings) and isinstance(QWEN3, PatchSettings)
SMALL = replace(QWEN, min_pixels=28 * 28, max_pixels=4 * 28 * 28)
SMALL3 = replace(QWEN3, min_pixels=32 * 32, max_pixels=64 * 32 * 32)


@pytest.fixture(scope="module")
def words() -> Any:
    return build_tokenizer(400)


def asked(settings: Any, words: Any, source: Any = DEMO, **options: Any) -> dict[str, torch.Tensor]:
    content = [{"type": "video", "video": source, **options}, {"type": "text", "text": "?"}]
    return prepare(settings, words, [{"role": "user", "content": content}])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_fps_and_nframes(words: Any) -> None:
    assert same(asked(SMALL, words, fps=1.5), prepare(SMALL, words, "?", [DEMO], fps=1.5))
    # half a patch rounds to even, as there: 5 frames are 4, 7 are 8
    for given, taken in ((4, 4), (5, 4), (7, 8), (2, 2)):
        assert same(asked(SMALL, words, nframes=given), prepare(SMALL, words, "?", [DEMO], num_frames=taken))
        assert same(asked(SMALL3, words, nframes=given), prepare(SMALL3, words, "?", [DEMO], num_frames=taken))
    # frame models take the very number
    llava = replace(FAMILIES["llava_onevision"], size=(56, 56), tokens_per_frame=4)
    mine = build_tokenizer(400, named_tokens={"video_token": "<|video_pad|>"})
    assert same(asked(llava, mine, nframes=5), prepare(llava, mine, "?", [DEMO], num_frames=5))
    # the part's own goes before the caller's
    messages = [{"role": "user", "content": [{"type": "video", "video": DEMO, "nframes": 4}]}]
    assert prepare(SMALL, words, messages, fps=1.0)["video_grid_thw"][0, 0] == 2
    messages = [{"role": "user", "content": [{"type": "video", "video": DEMO, "fps": 1.0}]}]
    for caller in ({"fps": 2.0}, {"num_frames": 2}):
        assert prepare(SMALL, words, messages, **caller)["video_grid_thw"][0, 0] == 4
    two = [{"role": "user", "content": [{"type": "video", "video": DEMO, "nframes": n} for n in (4, 8)]}]
    assert prepare(SMALL, words, two)["video_grid_thw"][:, 0].tolist() == [2, 4]


def test_frame_bounds(words: Any) -> None:
    every = prepare(SMALL, words, "?", [DEMO])["video_grid_thw"][0, 0] * 2
    assert every > 8
    assert asked(SMALL, words, max_frames=7)["video_grid_thw"][0, 0] == 3
    assert asked(SMALL, words, fps=0.1, min_frames=5)["video_grid_thw"][0, 0] == 3
    assert asked(SMALL, words, max_frames=2)["video_grid_thw"][0, 0] == 1


def film(path: Path, times: list[int]) -> Path:
    """Frame i is grey of value 2 * i and shows at times[i] milliseconds."""
    frames = np.repeat(np.arange(len(times), dtype=np.uint8) * 2, 64 * 64 * 3).reshape(-1, 64, 64, 3)
    return encode(path, "ffv1", times=times, base=Fraction(1, 1000), pix_fmt="bgr0", rate=10, frames=frames)


def test_start_and_end(words: Any, tmp_path: Path) -> None:
    file = film(tmp_path / "a.mkv", list(range(0, 6000, 100)))
    frames, info = load_video(file, start=1.5, end=2.0)
    assert info.indices == (15, 16, 17, 18, 19, 20) and info.total_frames == 6
    assert (frames[:, 0, 0, 0] // 2).tolist() == [15, 16, 17, 18, 19, 20]
    # sampled inside the range, first and last included in Qwen3-VL
    frames, info = load_video(file, SMALL3, start=2.0, end=4.0, fps=2.0)
    assert info.indices == (20, 27, 33, 40) and (frames[:, 0, 0, 0] // 2).tolist() == [20, 27, 33, 40]
    assert load_video(file, start=5.8)[1].indices == (58, 59)
    assert load_video(file, end=0.1)[1].indices == (0, 1)
    assert load_video(file, start=3.0, end=3.0)[1].indices == (30,)
    assert load_video(file, start=5.0, end=99)[1].indices == tuple(range(50, 60))
    # 20 of 21 frames at 10 a second: a pair of them spans 2 / (20 / 21 * 10) seconds
    part = asked(SMALL, words, file, video_start=2.0, video_end=4.0, nframes=20)
    assert part["second_per_grid_ts"].item() == pytest.approx(0.21)
    # timestamps are those of the whole film: 2.0 and 2.7 s, 3.3 and 4.0 s
    text = words.decode(asked(SMALL3, words, file, video_start=2.0, video_end=4.0, fps=2.0)["input_ids"][0])
    assert [float(piece.rsplit("<", 1)[1]) for piece in text.split(" seconds>")[:-1]] == pytest.approx(
        [2.35, 3.65], abs=0.051
    )


def test_start_and_end_by_the_frames_own_times(tmp_path: Path) -> None:
    """10 frames in the first second, one in each that follows; and a clock that does not begin at 0."""
    times = [*range(0, 1000, 100), *range(1000, 20000, 1000)]
    for begin in (0, 7000):
        file = film(tmp_path / f"{begin}.mkv", [begin + time for time in times])
        frames, info = load_video(file, start=5.0, end=7.0)
        assert info.indices == (14, 15, 16) and (frames[:, 0, 0, 0] // 2).tolist() == [14, 15, 16]
        assert load_video(file, start=0.25, end=0.55)[1].indices == (3, 4, 5)
        assert load_video(file, start=18.5)[1].indices == (28,)
        with pytest.raises(VideoError, match=r"the last of 29 frames shows at 19\.00 s"):
            load_video(file, start=19.5)


def test_start_and_end_past_damage(tmp_path: Path) -> None:
    """Where frames are lost, those that are left still show when they did."""
    file = encode(tmp_path / "a.mp4", count=60, base=Fraction(1, 10), g="10", bf="0", x264__params="scenecut=0")
    with av.open(str(file)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data, (place, size) = bytearray(file.read_bytes()), places[23]
    data[place : place + size] = b"\xff" * size
    file.write_bytes(data)
    with pytest.raises(VideoError, match="corrupt"):
        load_video(file, start=2.0, end=3.5)
    frames, info = load_video(file, start=2.0, end=3.5, on_damage="skip")
    assert info.indices == (20, 21, 22, *range(30, 36)) and info.total_frames == len(frames) == 9
    assert "frames 23 to 29" in info.skipped[0]


def test_range_by_frame_rate() -> None:
    # 8.8 s at 25 a second is frame 220, whatever 8.8 * 25 is in floating point
    assert frames_between(323, 25, 8.8, None) == range(220, 323)
    assert frames_between(31, 25, None, 1.16) == range(30)
    assert frames_between(100, 29.97, 1.0, 2.0) == range(30, 60)
    for start, end, message in (
        (4.0, None, "must have a frame between them, got 4.0 and None where the last of 31 frames shows at 3.00 s"),
        (1.01, 1.05, "must have a frame between them"),
        (-1.0, None, "start must be a number of seconds >= 0, got -1.0"),
        (None, "2", "end must be a number of seconds >= 0, got '2'"),
        (None, 10**400, "end must be a number of seconds >= 0"),
    ):
        with pytest.raises(VideoError, match=message):
            frames_between(31, 10, start, end)  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="start and end need a frame rate"):
        frames_between(31, None, 1.0, None)


def test_pictures_with_a_rate(words: Any) -> None:
    """Frames without a clock: the cards write their rate as fps, qwen-vl-utils as sample_fps."""
    frames = clip((6, 56, 56), 0)
    rated = asked(SMALL, words, frames, sample_fps=4.0)
    assert rated["second_per_grid_ts"].item() == 0.5 and rated["video_grid_thw"].tolist() == [[3, 4, 4]]
    assert same(rated, asked(SMALL, words, list(frames), fps=4.0))
    odd = asked(SMALL, words, list(frames[:5]), fps=4.0)
    assert odd["video_grid_thw"][0, 0] == 3 and odd["second_per_grid_ts"].item() == 0.5
    resampled = asked(SMALL, words, frames, sample_fps=3.0, fps=2.0)
    assert resampled["video_grid_thw"][0, 0] == 2 and resampled["second_per_grid_ts"].item() == 1.0
    part = asked(SMALL, words, frames, sample_fps=1.0, video_start=1.0, video_end=4.0)
    assert torch.equal(part["pixel_values_videos"], asked(SMALL, words, frames[1:5])["pixel_values_videos"])
    assert part["second_per_grid_ts"].item() == 2.0
    with pytest.raises(VideoError, match="sample_fps is for frames without a clock, this is a video file, got 2"):
        asked(SMALL, words, sample_fps=2)


@pytest.mark.parametrize(
    ("family", "shape", "options", "size"),
    [
        # sizes that qwen-vl-utils 0.0.14 gives (fetch_video, patch sizes 14 and 16)
        ("qwen2_5_vl", (8, 720, 1280), {"max_pixels": 360 * 420}, (280, 504)),
        ("qwen2_5_vl", (8, 720, 1280), {"max_pixels": 360 * 420, "min_pixels": 4 * 28 * 28}, (280, 504)),
        ("qwen2_5_vl", (60, 720, 1280), {"total_pixels": 2000 * 28 * 28}, (224, 420)),
        ("qwen2_5_vl", (60, 720, 1280), {"total_pixels": 2000 * 28 * 28, "min_pixels": 16 * 28 * 2}, (168, 280)),
        ("qwen2_5_vl", (8, 60, 100), {"min_pixels": 200 * 28 * 28}, (308, 532)),
        ("qwen2_5_vl", (8, 60, 100), {"total_pixels": 100 * 28 * 28, "min_pixels": 16 * 28 * 2}, (56, 112)),
        ("qwen3_vl", (8, 720, 1280), {"max_pixels": 256 * 32 * 32, "min_pixels": 4 * 32 * 32}, (384, 672)),
        ("qwen3_vl", (7, 720, 1280), {"max_pixels": 256 * 32 * 32}, (384, 672)),
        # a bound beyond the settings' other one moves it; Qwen3-VL's settings count the clip, 128 tokens for 16 frames
        ("qwen2_5_vl", (8, 28, 28), {"max_pixels": 28 * 28}, (28, 28)),
        ("qwen3_vl", (16, 64, 64), {"max_pixels": 256 * 32 * 32}, (96, 96)),
        ("qwen2_5_vl", (8, 60, 100), {"resized_height": 280, "resized_width": 430}, (280, 420)),
        ("qwen3_vl", (8, 60, 100), {"resized_height": 280, "resized_width": 5}, (288, 32)),
    ],
)
def test_sizes(family: str, shape: tuple[int, ...], options: dict[str, int], size: tuple[int, int]) -> None:
    settings = FAMILIES[family]
    assert isinstance(settings, PatchSettings)
    if family == "qwen3_vl":
        settings = replace(settings, max_pixels=24576 * 32 * 32)
    assert VideoOptions(**options).frame_size((*shape, 3), settings) == size


def test_sizes_reach_the_pixels(words: Any) -> None:
    assert asked(SMALL, words, nframes=2, max_pixels=784)["video_grid_thw"].tolist() == [[1, 2, 2]]
    grid = asked(SMALL, words, nframes=2, resized_height=84, resized_width=140)["video_grid_thw"]
    assert grid.tolist() == [[1, 6, 10]]
    # and nothing said is the settings' own budget
    assert same(asked(SMALL, words, nframes=2), prepare(SMALL, words, "?", [DEMO], num_frames=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 2, "nframes": 4}, "message 0, part 0: at most one of fps and nframes may be given"),
        ({"nframes": 4, "max_frames": 8}, "at most one of nframes and max_frames"),
        ({"nframes": 0}, "nframes must be a positive integer, got 0"),
        ({"nframes": 1}, "nframes must make at least one temporal patch of 2 frames, got 1"),
        ({"nframes": 4.0}, "nframes must be a positive integer, got 4.0"),
        ({"nframes": True}, "nframes must be a positive integer, got True"),
        ({"nframes": 10**6}, "num_frames must not exceed"),
        ({"fps": 0}, "fps must be a positive number, got 0"),
        ({"fps": "2"}, "fps must be a positive number, got '2'"),
        ({"fps": float("nan")}, "fps must be a positive number, got nan"),
        ({"fps": 10**400}, "fps must be a positive number"),
        ({"max_frames": 1}, "max_frames must be at least one temporal patch of 2 frames, got 1"),
        ({"min_frames": 8, "max_frames": 4}, r"min_frames must not exceed max_frames \(4\), got 8"),
        ({"min_frames": -2}, "min_frames must be a positive integer"),
        ({"video_start": -1}, "video_start must be a number of seconds >= 0, got -1"),
        ({"video_end": "0:10"}, "video_end must be a number of seconds >= 0, got '0:10'"),
        ({"video_start": 2, "video_end": 1}, "video_start must not be after video_end, got '2 and 1'"),
        ({"video_start": 10**5}, "start and end must have a frame between them"),
        ({"max_pixels": 0}, "max_pixels must be a positive number, got 0"),
        ({"min_pixels": 9000, "max_pixels": 8000}, "min_pixels must not exceed max_pixels"),
        ({"total_pixels": float("inf")}, "total_pixels must be a positive number, got inf"),
        ({"resized_height": 56}, "resized_height and resized_width must be given together"),
        ({"resized_height": 56, "resized_width": 56, "max_pixels": 784}, "max_pixels must not be given beside resized"),
        ({"resized_height": 10**4, "resized_width": 10**4}, "must be at most 16384 tokens of 28 x 28 pixels"),
        ({"resized_height": 28, "resized_width": 28 * 201}, "one side at most 200 times the other"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str, words: Any) -> None:
    with pytest.raises(VideoError, match=message):
        asked(SMALL, words, **options)


def test_what_a_family_has_no_place_for(words: Any) -> None:
    for family in ("llava_onevision", "llava_next_video", "internvl"):
        own = build_tokenizer(400, named_tokens={"video_token": "<|video_pad|>"})
        for name in ("max_pixels", "min_pixels", "total_pixels", "max_frames", "min_frames"):
            with pytest.raises(VideoError, match=f"message 0, part 0: {family} has no {name}, got 4"):
                asked(FAMILIES[family], own, **{name: 4})
        with pytest.raises(VideoError, match=f"{family} has no resized_height, got 56"):
            asked(FAMILIES[family], own, resized_height=56, resized_width=56)


def test_frame_bounds_need_a_rate(words: Any) -> None:
    counted = replace(SMALL, fps=None, num_frames=4)
    with pytest.raises(VideoError, match="max_frames bounds sampling by fps, which must be given, got 8"):
        asked(counted, words, max_frames=8)
    with pytest.raises(VideoError, match="min_frames bounds sampling by fps"):
        asked(SMALL, words, clip((6, 56, 56), 0), min_frames=8)


def test_pixels_that_no_memory_holds(words: Any) -> None:
    huge = 10**12
    with pytest.raises(VideoError, match=r"the pixels of shape .* take \d+ GiB, at most 16 are made"):
        asked(SMALL, words, nframes=2, min_pixels=huge, max_pixels=2 * huge)
    llava = replace(FAMILIES["llava_next_video"], tokens_per_frame=4)
    with pytest.raises(VideoError, match="at most 16 are made"):
        prepare(
            llava, build_tokenizer(400, named_tokens={"video_token": "<|video_pad|>"}), "?", [clip((1, 1, 400000), 0)]
        )
