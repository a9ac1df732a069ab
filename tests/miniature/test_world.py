"""The synthetic world: numbers decide everything, pictures show what is said, files keep it, lengths are prepare's."""

import json
import random
import re

import numpy as np
import pytest

from sparrow.cli import main as cli
from sparrow.miniature.model import SETTINGS
from sparrow.miniature.shipped import DEMO, DEMO_FORM, DEMO_NUMBER, pair
from sparrow.miniature.world import FORMATS, Format, converse, render, sample, sample_scene, visual_tokens, write_video
from sparrow.miniature.world.language import COUNTS, KINDS_OF_QUESTION, PLACES
from sparrow.miniature.world.scene import COLOURS, KINDS, Scene, Shape
from sparrow.video import load_video, prepare
from tests.video.golden.cases import tokenizer

TINY = Format(1, 8)


def test_a_number_is_always_the_same_clip():
    a, b = sample(7, FORMATS[64][0]), sample(7, FORMATS[64][0])
    assert a.scene == b.scene and a.answer == b.answer and np.array_equal(a.frames, b.frames)
    large = sample(7, FORMATS[256][1])
    assert large.scene == a.scene and large.answer == a.answer and large.frames.shape == (8, 128, 128, 3)
    assert not np.array_equal(a.frames, sample(8, FORMATS[64][0]).frames)


def test_splits_share_no_scene():
    scenes = {split: {sample(n, TINY, split=split).scene for n in range(300)} for split in ("train", "dev", "test")}
    assert all(len(s) == 300 for s in scenes.values()) and len(set.union(*scenes.values())) == 900


@pytest.mark.parametrize("length", [n for n in FORMATS if n <= 4096])
def test_visual_lengths_are_those_of_prepare(length):
    words = tokenizer("qwen2_5_vl")
    for form in FORMATS[length]:
        frames = np.zeros((form.frames, form.side, form.side, 3), np.uint8)
        grid = prepare(SETTINGS, words, "?", [frames])["video_grid_thw"]
        assert int(grid.prod()) // 4 == length == visual_tokens(form)


def test_a_file_keeps_length_rate_and_pixels(tmp_path):
    for number, form in enumerate((Format(8, 64), Format(32, 64), Format(8, 128))):
        clip = sample(number, form)
        write_video(tmp_path / "clip.mp4", clip.frames, clip.fps)
        frames, info = load_video(tmp_path / "clip.mp4")
        assert frames.shape == clip.frames.shape and info.fps == pytest.approx(clip.fps, rel=1e-3)
        error = np.abs(frames.astype(float) - clip.frames)
        assert error.mean() < 3 and (error.max(-1) > 90).mean() < 0.01  # colour edges are smoothed by 4:2:0
        words = tokenizer("qwen2_5_vl")
        inputs = prepare(SETTINGS, words, clip.prompt, [(frames, info)])
        assert int(inputs["video_grid_thw"].prod()) // 4 == visual_tokens(form)
        seconds = float(inputs["second_per_grid_ts"][0])
        assert seconds == pytest.approx(2 / clip.fps, rel=1e-3)
    write_video(tmp_path / "again.mp4", clip.frames, clip.fps)
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()


def test_descriptions_say_what_the_scene_holds():
    for number in range(200):
        clip = sample(number, TINY)
        scene, text = clip.scene, clip.answer.lower()
        assert f"{scene.seconds} seconds" in text and f"{scene.ground}" in text
        assert f"{COUNTS[len(scene.shapes)]} shape" in text
        for shape in scene.shapes:
            assert re.search(rf"(small|tiny|large|big) {shape.colour} {shape.kind}", text)
            assert any(place in text for place in PLACES[shape.cell]) and f"second {shape.enters}" in text
            for event in [shape.turns and shape.turns[0], shape.leaves]:
                assert event is None or f"second {event}" in text
        said = set(re.findall(rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(KINDS)})", text))
        there = {f"{c} {s.kind}" for s in scene.shapes for c in (s.colour, s.last_colour())}
        assert said <= there


def test_answers_are_about_the_scene():
    rng = random.Random(0)
    for _ in range(50):
        scene = sample_scene(rng)
        assert converse(scene, rng, "count")[2].endswith(f" {COUNTS[len(scene.shapes)]}.")
        assert converse(scene, rng, "ground")[2].endswith(f" {scene.ground}.")
        assert len(converse(scene, rng, "list")[2].splitlines()) == len(scene.shapes)
        for kind in KINDS_OF_QUESTION:
            assert converse(scene, rng, kind)[0] == kind


def test_pictures_show_the_scene():
    """Where a shape is said to be, its colour is."""
    seen = 0
    for number in range(20):
        scene = sample(number, TINY).scene
        frames, owner = render(scene, 32, 128, seed=number, owner=True)
        for i, shape in enumerate(scene.shapes, 1):
            mine = owner == i
            at = [(f + 0.5) * scene.seconds / 32 for f in range(32)]
            shown = mine.any((1, 2))
            assert not any(s for s, t in zip(shown, at, strict=True) if t < shape.enters)
            assert shape.leaves is None or not any(s for s, t in zip(shown, at, strict=True) if t >= shape.leaves)
            before = [f for f in range(32) if shown[f] and (shape.turns is None or at[f] < shape.turns[0])]
            for f in before[:1]:
                colour = np.median(frames[f][mine[f]], axis=0)
                assert np.abs(colour - COLOURS[shape.colour]).max() < 25
                seen += 1
    assert seen > 30


RED = Shape("red", "circle", "large", (0, 0), 1 / 6, 1 / 6, "right", "quickly", 0, None, (2, "blue"))
GREEN = Shape("green", "square", "small", (2, 2), 5 / 6, 5 / 6, None, "slowly", 1, 4, None)
WHITE = Shape("white", "ring", "small", (2, 1), 1 / 2, 5 / 6, "up", "slowly", 3, None, None)
STORY = Scene(6, "gray", (RED, GREEN, WHITE))  # red ends at 1/6 + 0.58 = 0.75 to the right, white at 5/6 - 0.28 = 0.55


def test_what_is_said_of_one_scene_by_hand():
    """Every sentence that can be said of it is one of these; each of them is said."""
    looks = r"(?:[Aa] )?(?P<look>(?:large|big) red circle|(?:small|tiny) (?:green square|white ring))"
    motions = {
        "red": r"(?:moves to the right quickly|(?:races|shoots|rushes) to the right)",
        "green": r"(?:does not move|stays where it is|rests there)",
        "white": r"(?:moves up slowly|(?:drifts|glides|creeps) up)",
    }
    allowed = {
        "It turns blue at second 2.", "At second 2 it becomes blue.", "It is gone after second 4.",
        "At second 4 it disappears.",
        *(f"{where}, the blue circle is at the upper right." for where in ("At the end", "In the last frame")),
        "The white ring is in the center.",
        "In total, two of the three shapes are moving and one is large.",
        "There is one large and two moving among the three shapes.",
        *(f"The {a} appears before the {b}." for a, b in ORDER), *(f"The {b} appears after the {a}." for a, b in ORDER),
    }  # fmt: skip
    said = set()
    for seed in range(300):
        sentences = re.split(r"(?<=\.) ", converse(STORY, random.Random(seed), "describe")[2])[1:]
        if sentences[0].startswith("The background"):
            sentences = sentences[1:]
        for sentence in sentences:
            entry = re.search(looks, sentence)
            if entry is None:
                assert sentence in allowed, sentence
                said.add(sentence)
                continue
            colour = entry["look"].split()[1]
            enters = {"red": 0, "green": 1, "white": 3}[colour]
            assert f"second {enters}" in sentence and re.search(motions[colour] + r"\.$", sentence), sentence
    assert said == allowed


ORDER = (("red circle", "green square"), ("red circle", "white ring"), ("green square", "white ring"))
ANSWERS = {
    "count": {"The number of shapes is three."},
    "ground": {"The background is gray."},
    "colour": {
        "The color of the first shape is red.", "The color of the second shape is green.",
        "The color of the third shape is white.",
    },
    "kind": {f"The {n} shape is a {k}." for n, k in (("first", "circle"), ("second", "square"), ("third", "ring"))},
    "size": {f"The {n} shape is {k}." for n, k in (("first", "large"), ("second", "small"), ("third", "small"))},
    "place": {
        "The first shape appears at the upper left.", "The second shape appears at the lower right.",
        "The third shape appears at the bottom.",
    },
    "motion": {
        "The first shape moves quickly to the right.", "The second shape stays still.",
        "The third shape moves slowly up.",
    },
    "second": {f"The {n} shape appears at second {s}." for n, s in (("first", 0), ("second", 1), ("third", 3))},
    "list": {
        "1. second 0: large red circle at the upper left, moves quickly to the right, blue from second 2\n"
        "2. second 1: small green square at the lower right, stays still, gone at second 4\n"
        "3. second 3: small white ring at the bottom, moves slowly up"
    },
}  # fmt: skip


def test_answers_about_one_scene_by_hand():
    assert {*ANSWERS, "describe"} == set(KINDS_OF_QUESTION)
    for kind, answers in ANSWERS.items():
        asked = [converse(STORY, random.Random(seed), kind) for seed in range(40)]
        assert {answer for _, _, answer in asked} == answers
        for _, prompt, answer in asked:  # the shape asked about is the one answered about
            ordinal = re.search("first|second (?=shape|one)|third", prompt)
            assert kind in ("count", "ground", "list") or (ordinal and f"{ordinal[0].strip()} shape" in answer)


def test_pictures_of_one_scene_by_hand():
    """When each shape is there, where it is, its colour before and after it turns."""
    frames, owner = render(STORY, 60, 128, owner=True)
    second = (np.arange(60) + 0.5) / 10
    shown = [(owner == i).any((1, 2)) for i in (1, 2, 3)]
    assert np.array_equal(shown[0], second > 0) and np.array_equal(shown[2], second > 3)
    assert np.array_equal(shown[1], (second > 1) & (second < 4))
    for at, colour in ((19, "red"), (20, "blue"), (59, "blue")):
        assert np.abs(np.median(frames[at][owner[at] == 1], axis=0) - COLOURS[colour]).max() < 25
    rows, columns = np.nonzero(owner[59] == 1)
    assert columns.mean() / 128 == pytest.approx(1 / 6 + 0.58, abs=0.02) and rows.mean() / 128 == pytest.approx(
        1 / 6, abs=0.02
    )
    rows, columns = np.nonzero(owner[59] == 3)
    assert columns.mean() / 128 == pytest.approx(0.5, abs=0.02) and rows.mean() / 128 == pytest.approx(
        5 / 6 - 0.28, abs=0.02
    )


INSIDE = {  # of points (x, y) in units of the radius, y downwards: what a shape covers
    "circle": [(0, 0), (0.65, 0.65), (0, 0.9)], "square": [(0, 0), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, 0), (0.7, 0.75), (-0.7, 0.75)], "cross": [(0, 0), (0, 0.9), (-0.9, 0)],
    "ring": [(0, 0.75), (0.53, 0.53), (-0.75, 0)], "diamond": [(0, 0), (0, 0.9), (0.45, 0.45)],
}  # fmt: skip
OUTSIDE = {
    "circle": [(0.8, 0.8)], "square": [(0, 0.97)], "triangle": [(0.7, -0.7), (0, 0.97)], "cross": [(0.6, 0.6)],
    "ring": [(0, 0), (0.8, 0.8)], "diamond": [(0.65, 0.65)],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_look_like_their_names(kind):
    scene = Scene(5, "black", (Shape("white", kind, "large", (1, 1), 0.5, 0.5, None, "slowly", 0, None, None),))
    _, owner = render(scene, 1, 512, owner=True)
    for points, covered in ((INSIDE, 1), (OUTSIDE, 0)):
        for x, y in points[kind]:
            assert owner[0, int(256 + y * 0.14 * 512), int(256 + x * 0.14 * 512)] == covered, (x, y)


def test_no_two_shapes_of_a_scene_look_alike():
    for number in range(300):
        looks = [(s.colour, s.kind) for s in sample(number, TINY).scene.shapes]
        assert len(set(looks)) == len(looks)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="split must be train, dev or test, got 'all'"):
        sample(0, TINY, split="all")
    with pytest.raises(ValueError, match=r"kind must be describe, list or one of .*, got 'poem'"):
        sample(0, TINY, kind="poem")
    with pytest.raises(ValueError, match=r"num_shapes must lie in \[1, 4\], got 5"):
        sample(0, TINY, num_shapes=5)
    for frames in (np.zeros((2, 7, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="frames must be uint8"):
            write_video(tmp_path / "x.mp4", frames, 4.0)


def test_the_demo_clip_is_the_numbered_one():
    clip = sample(DEMO_NUMBER, DEMO_FORM)
    frames, info = load_video(DEMO)
    assert frames.shape == clip.frames.shape and info.fps == clip.fps and DEMO.stat().st_size < 150_000
    error = np.abs(frames.astype(float) - clip.frames)
    # another FFmpeg may round otherwise; a wrong frame differs in more than 1 % of its pixels
    assert error.mean() < 3 and (error.max(-1) > 90).mean() < 0.005
    sampled = prepare(SETTINGS, tokenizer("qwen2_5_vl"), "?", [DEMO])
    assert int(sampled["video_grid_thw"].prod()) // 4 == 1024


def test_a_pair_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"target/config.json is missing"):
        pair(tmp_path)


def test_command(tmp_path, capsys):
    argv = ["synthetic", "--out", str(tmp_path / "clips"), "--count", "2", "--length", "64", "--first", "5"]
    assert cli.main([*argv, "--split", "dev", "--sheet", str(tmp_path / "sheet.png")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "clips" / "clips.jsonl").read_text().splitlines()]
    want = [sample(n, FORMATS[64][0], split="dev") for n in (5, 6)]
    assert [(x["prompt"], x["answer"]) for x in lines] == [(c.prompt, c.answer) for c in want]
    for line, clip in zip(lines, want, strict=True):
        frames, _ = load_video(tmp_path / "clips" / line["video"])
        assert frames.shape == clip.frames.shape
    assert (tmp_path / "sheet.png").stat().st_size > 8000
    for more, words in ((["--count", "1"], "--out FOLDER"), (["--sheet", "x.png", "--length", "65"], "got 65")):
        assert cli.main(["synthetic", *more]) == 1 and words in capsys.readouterr().err
