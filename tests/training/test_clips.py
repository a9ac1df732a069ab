"""Clips of a file: text alone, videos, several turns; and how many of them are in memory."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from sparrow.miniature import shipped as miniature
from sparrow.training.asking import Asked, batched, prepared
from sparrow.training.clips import FileClips
from sparrow.training.recipe import Answers
from sparrow.video import load_settings, prepare, together
from tests.pairs import write_tiny_pair


class Watched:
    """10,000 references to clips of many shapes; how many were in memory at once is counted."""

    def __init__(self, shapes: int):
        self.shapes, self.alive, self.most = shapes, 0, 0

    def inputs(self, clip: int):
        ids = torch.zeros(1, 5 + (clip * 7919) % self.shapes, dtype=torch.int64)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(ids, self.gone)
        return {"input_ids": ids}

    def gone(self) -> None:
        self.alive -= 1


def jobs(count: int) -> list[tuple[int, tuple[float, ...]]]:
    return [(clip, (0.0,)) for clip in range(count)]


@pytest.mark.parametrize(("shapes", "size", "ahead"), [(1, 8, 8), (7, 8, 64), (3000, 8, 32), (3000, 16, 4), (7, 1, 1)])
def test_ten_thousand_clips_in_bounded_memory(shapes, size, ahead):
    """Every clip once, in batches of similar length within the budget, and never more in memory than was said."""
    clips, seen, sizes, padded, held = Watched(shapes), [], [], 0, 0
    config = Answers(batch=size, ahead=ahead, batch_tokens=8000, max_new_tokens=2)
    for group in batched(prepared(clips, jobs(10_000), ahead - ahead // 2, 2), config):
        longest = max(one.length for one in group)
        assert len(group) == 1 or (len(group) <= size and len(group) * (longest + 2) <= 8000)
        seen += [one.clip for one in group]
        sizes.append(len(group))
        padded, held = padded + longest * len(group), held + sum(one.length for one in group)
        del group
    gc.collect()
    assert sorted(seen) == list(range(10_000)) and clips.alive == 0
    assert clips.most <= size + ahead
    assert sum(sizes) / len(sizes) > (0.99 * size if shapes < 3000 else 3) and padded < 1.3 * held


def test_a_clip_that_cannot_be_read_ends_it():
    clips = Watched(3)
    plain, clips.inputs = clips.inputs, lambda clip: plain(clip) if clip < 20 else 1 / 0
    found = batched(prepared(clips, jobs(100), 2, 1), Answers(batch=2, ahead=4))
    with pytest.raises(ZeroDivisionError):
        list(found)


def test_prompts_that_cannot_be_joined_are_not():
    """Videos of other sizes in one family; a prompt without a video goes with any."""
    video = {n: torch.zeros(1, n, 3, 4, 4) for n in (2, 3)}
    kinds = [{"pixel_values_videos": video[2]}, {"pixel_values_videos": video[3]}, {}]
    asked = [Asked(i, (0.0,), {"input_ids": torch.zeros(1, 9), **kinds[i % 3]}) for i in range(6)]
    groups = [[one.clip for one in group] for group in batched(asked, Answers(batch=6))]
    assert groups == [[0, 2, 3, 5], [1, 4]]
    for group in groups:
        together([asked[i].inputs for i in group], 0)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    write_tiny_pair(folder)
    return folder / "target"


def clips_of(target, folder, *lines) -> FileClips:
    from transformers import AutoTokenizer

    (folder / "demo.mp4").symlink_to(miniature.DEMO)
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return FileClips(folder / "clips.jsonl", load_settings(target), AutoTokenizer.from_pretrained(target), 4, None)


def test_lines(target, tmp_path):
    """A question alone, one about a video, and a chat of three turns about two videos."""
    video = {"type": "video", "video": "demo.mp4"}
    chat = [
        {"role": "user", "content": [video, {"type": "text", "text": "What moves?"}]},
        {"role": "assistant", "content": "A ball."},
        {"role": "user", "content": [{"type": "text", "text": "And here?"}, video]},
    ]
    clips = clips_of(
        target, tmp_path, {"prompt": "Hello"}, {"video": "demo.mp4", "prompt": "What moves?"}, {"messages": chat}
    )
    alone, one, two = (clips.inputs(n) for n in range(3))
    assert "pixel_values_videos" not in alone and len(one["video_grid_thw"]) == 1 and len(two["video_grid_thw"]) == 2
    placed = json.loads(json.dumps(chat).replace("demo.mp4", str(tmp_path / "demo.mp4")))
    want = prepare(clips.settings, clips.tokenizer, placed, num_frames=4)
    assert all(torch.equal(two[name], value) for name, value in want.items())
    assert clips.describe(2) == {"messages": chat}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": []}, "line 1: messages must be a list of objects"),
        ({"messages": "hello"}, "line 1: messages must be a list of objects"),
        ({"messages": [{"role": "user", "content": "x"}], "video": "a.mp4"}, "video must not stand beside messages"),
    ],
)
def test_lines_are_refused(target, tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        clips_of(target, tmp_path, line)


def test_lines_with_images(target, tmp_path):
    """One image, several, one before a video, and a chat that has them in two turns, by several names."""
    for name, size in (("a.png", (60, 80)), ("b.jpg", (90, 60))):
        Image.fromarray(np.full((*size, 3), 99, np.uint8)).save(tmp_path / name)
    image, video = {"type": "image", "image": "a.png"}, {"type": "video", "video": "demo.mp4"}
    asked = {"type": "text", "text": "And here?"}
    chat = [
        {"role": "user", "content": [image, {"type": "text", "text": "What moves?"}]},
        {"role": "assistant", "content": "A ball."},
        {"role": "user", "content": [{"type": "image", "path": "b.jpg"}, asked, video]},
    ]
    far = [{"role": "user", "content": [{"image_url": f"file://{tmp_path}/a.png"}, {"image": f"{tmp_path}/b.jpg"}]}]
    clips = clips_of(
        target, tmp_path, {"image": "a.png", "prompt": "What?"}, {"images": ["a.png", "b.jpg"], "prompt": "What?"},
        {"image": "b.jpg", "video": "demo.mp4", "prompt": "What?"}, {"messages": chat}, {"messages": far},
    )  # fmt: skip
    one, two, both, turns, named = (clips.inputs(n) for n in range(5))
    assert [len(x["image_grid_thw"]) for x in (one, two, both, turns, named)] == [1, 2, 1, 2, 2]
    assert "pixel_values_videos" not in two and len(both["video_grid_thw"]) == len(turns["video_grid_thw"]) == 1
    placed = json.loads(json.dumps(chat).replace("a.png", f"{tmp_path}/a.png").replace("b.jpg", f"{tmp_path}/b.jpg"))
    placed = json.loads(json.dumps(placed).replace("demo.mp4", str(tmp_path / "demo.mp4")))
    want = prepare(clips.settings, clips.tokenizer, placed, num_frames=4)
    assert all(torch.equal(turns[name], value) for name, value in want.items())
    assert torch.equal(named["pixel_values"], two["pixel_values"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": 7, "prompt": "x"}, r'line 1 must be {"prompt": text}, with .* or {"messages": \[...\]}, got'),
        ({"image": "a.png"}, 'line 1 must be {"prompt": text}'),
        ({"images": "a.png", "prompt": "x"}, "line 1: images must be a list of paths"),
        ({"images": [7], "prompt": "x"}, "line 1: images must be a list of paths"),
        ({"images": ["a.png"], "image": "a.png", "prompt": "x"}, "line 1: image must not stand beside images"),
        ({"messages": [{"role": "user", "content": "x"}], "images": []}, "images must not stand beside messages"),
        ([1], 'line 1 must be {"prompt": text}'),
    ],
)
def test_lines_with_images_are_refused(target, tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        clips_of(target, tmp_path, line)


def test_an_image_that_cannot_be_read_is_named(target, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"clips\.jsonl, line 2: image 0 must be an existing image file"):
        clips_of(target, tmp_path, {"prompt": "x"}, {"image": "none.png", "prompt": "x"}).inputs(1)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"clips\.jsonl, line 1: .*cut\.png is not an image that can be read"):
        (tmp_path / "other").mkdir()
        clips_of(target, tmp_path / "other", {"image": f"{tmp_path}/cut.png", "prompt": "x"}).inputs(0)
