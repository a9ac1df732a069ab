"""Answers by an engine, without one: what is asked of it, and what becomes of what it says."""

import json
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from sparrow.engines.vllm_worker import Finished, Pass
from sparrow.miniature.shipped import DEMO, pair
from sparrow.targets.adapter import Target
from sparrow.training import stages
from sparrow.training.answers import read_answers
from sparrow.training.clips import FileClips
from sparrow.training.engine_answers import EngineAnswers
from sparrow.video import VideoError, load_settings
from tests.training.cases import settings

ROOM = 291  # the tiny target's video token


class Fake:
    """Answers each prompt with two tokens; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def run(self, prompts, sampling, concurrent):
        self.asked.append((prompts, sampling, concurrent))
        done = tuple(Finished((5, ROOM, ROOM, 6), (7, 8 + i), 0.1, 0.2) for i in range(len(prompts)))
        return Pass(done, 1.0, {})


class Words:
    """A tokenizer that shows what was to be said."""

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return "+".join(part.get("text", part["type"]) for part in messages[0]["content"])


TURNS = [
    {
        "role": "user",
        "content": [{"type": "video", "video": str(DEMO), "nframes": 2}, {"type": "text", "text": "What?"}],
    },
    {"role": "assistant", "content": "A circle."},
    {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "video", "path": str(DEMO)}]},
]


@pytest.fixture
def clips(tmp_path):
    file = tmp_path / "clips.jsonl"
    lines = [{"prompt": "What?", "video": str(DEMO)}, {"prompt": "Why?"}, {"messages": TURNS}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return FileClips(file, load_settings(pair()[0]), AutoTokenizer.from_pretrained(pair()[0]), 4, None)


def answering(tiny, clips, config, positions="reference"):
    target = Target(tiny("qwen2_5_vl"))
    return EngineAnswers(Fake(), target, Words(), clips, config.answers, positions), target


def test_what_is_asked_and_kept(tiny, clips, tmp_path):
    clips.lines, clips.places = clips.lines[:2], clips.places[:2]
    config = settings(tmp_path, answers={"batch": 3, "temperatures": (0.0, 0.7), "max_new_tokens": 9, "seed": 2})
    engine, target = answering(tiny, clips, config)
    found = stages.prepare_answers(target, clips, config, stages.Ranks(), engine)
    assert found == read_answers(tmp_path / "answers")
    assert [(a.clip, a.temperature, a.text_tokens, a.visual_tokens) for a in found] == [
        (0, 0.0, 2, 2), (0, 0.7, 2, 2), (1, 0.0, 2, 2), (1, 0.7, 2, 2),
    ]  # fmt: skip
    ((prompts, sampling, concurrent),) = engine.engine.asked
    assert [p["prompt"] for p in prompts] == ["video+What?", "video+What?", "Why?", "Why?"] and concurrent == 3
    frames, about = prompts[0]["multi_modal_data"]["video"][0]
    assert len(frames) == len(about["frames_indices"]) == 4 and about["do_sample_frames"] is False
    assert "multi_modal_data" not in prompts[2]
    assert [s["temperature"] for s in sampling] == [0.0, 0.7, 0.0, 0.7] and "seed" not in sampling[0]
    assert sampling[1]["seed"] == 2_000_006 and sampling[3]["seed"] == 2_000_007
    assert stages.prepare_answers(target, clips, config, stages.Ranks(), engine) == found
    assert len(engine.engine.asked) == 1  # nothing is missing
    with pytest.raises(ValueError, match="engine='vllm', now it is None"):
        stages.prepare_answers(target, clips, config, stages.Ranks())


def test_a_numbering_that_is_not_vllms_is_refused(tiny, clips, tmp_path):
    with pytest.raises(ValueError, match=r"states\.positions must be reference for qwen2_5_vl"):
        answering(tiny, clips, settings(tmp_path), "hf")


def test_chats_are_what_prepare_reads(tiny, clips, tmp_path):
    """Their text, placeholders for each video, and the frames; a size is the engine's to choose."""
    engine, _ = answering(tiny, clips, settings(tmp_path))
    engine.tokenizer = clips.tokenizer
    engine.answer([(2, 0.0)])
    (prompt,) = engine.engine.asked[0][0]
    assert [len(frames) for frames, _ in prompt["multi_modal_data"]["video"]] == [2, 4]
    ids = clips.inputs(2)["input_ids"][0].tolist()
    video = clips.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    once = [token for i, token in enumerate(ids) if token != video or ids[i - 1] != video]
    assert clips.tokenizer(prompt["prompt"], add_special_tokens=False)["input_ids"] == once
    clips.lines[2]["messages"][0]["content"][0]["max_pixels"] = 3136
    with pytest.raises(VideoError, match=r"line 3: message 0, part 0: an engine resizes .*, got max_pixels"):
        engine.answer([(2, 0.0)])


def test_many_jobs_are_written_down_in_parts(tiny, clips, tmp_path):
    engine, _ = answering(tiny, clips, SimpleNamespace(answers=settings(tmp_path, answers={"batch": 2}).answers))
    assert [len(made) for made in engine.answers([(1, (0.0, 0.7))] * 17 + [(1, (0.0,))])] == [16, 16, 3]
