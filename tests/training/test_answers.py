"""The first stages of training: the target's answers and its states along them."""

from dataclasses import replace

import pytest

import sparrow
from sparrow.targets.adapter import Target
from sparrow.training import trainer as training
from sparrow.training.answers import read_answers
from sparrow.training.recipe import Recipe
from tests.training.cases import RandomClips, log, settings
from tests.videos import sample_inputs


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_answers_are_the_targets_own(tiny, tmp_path, family):
    model, clips = tiny(family), RandomClips(family, 4)
    found = training.prepare_answers(Target(model), clips, settings(tmp_path), training.Ranks())
    assert found == read_answers(tmp_path / "answers") and [a.clip for a in found] == [0, 1, 2, 3]
    for answer in found:
        inputs = clips.inputs(answer.clip)
        want = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
        assert list(answer.ids) == want.tolist()
        assert answer.visual_tokens == int((inputs["input_ids"] == 291).sum()) > 0
        assert answer.text_tokens + answer.visual_tokens == inputs["input_ids"].shape[1]


def test_answers_end_where_the_target_ends(tiny, tmp_path, monkeypatch):
    """The end of sequence is the last token kept, also of the shorter answer of a batch."""
    model, clips = tiny("qwen2_5_vl"), RandomClips("qwen2_5_vl", 4)
    clips.inputs = lambda clip: sample_inputs("qwen2_5_vl", seed=clip)  # one length: one batch
    prompt = clips.inputs(0)["input_ids"].shape[1]
    end = int(model.generate(**clips.inputs(0), do_sample=False, max_new_tokens=16)[0, prompt + 5])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end, 299])
    config = settings(tmp_path, answers={"batch": 4})
    answers = training.prepare_answers(Target(model), clips, config, training.Ranks())
    for answer in answers:
        out = sparrow.generate(model, **clips.inputs(answer.clip), max_new_tokens=16)
        assert list(answer.ids) == out.sequences[0, prompt:].tolist()
    assert answers[0].ids[-1] == end and len(answers[0].ids) <= 6 < max(len(a.ids) for a in answers)


def test_prompts_numbered_by_the_reference_rule(tiny, tmp_path):
    """Answers and states follow the numbering asked for, as sparrow.generate does."""
    model, clips = tiny("qwen2_5_vl"), RandomClips("qwen2_5_vl", 3, videos=2)
    config = settings(tmp_path, states={"positions": "reference"}, answers={"batch": 2})
    answers = training.prepare_answers(Target(model), clips, config, training.Ranks())
    for answer in answers:
        out = sparrow.generate(model, **clips.inputs(answer.clip), max_new_tokens=16, positions="reference")
        assert out.sequences[0, -len(answer.ids) :].tolist() == list(answer.ids)
    other = settings(tmp_path / "hf", answers={"batch": 2})
    assert training.prepare_answers(Target(model), clips, other, training.Ranks()) != answers


def test_sampled_answers(tiny, tmp_path):
    """Both kinds of answer for each clip; sampled ones differ from greedy ones, and are seeded."""
    found = []
    for name in ("a", "b"):
        config = settings(tmp_path / name, answers={"temperatures": [0.0, 1.5]})
        found.append(training.prepare_answers(Target(tiny("qwen2_5_vl")), RandomClips("qwen2_5_vl", 3), config,
                                              training.Ranks()))  # fmt: skip
    assert found[0] == found[1] and [(a.clip, a.temperature) for a in found[0]] == [
        (c, t) for c in range(3) for t in (0.0, 1.5)
    ]
    assert all(found[0][2 * c].ids != found[0][2 * c + 1].ids for c in range(3))


def test_answers_and_states_go_on(tiny, tmp_path):
    """Interrupted stages keep what they have; a torn line or file is made again; other settings are refused."""
    target, config = Target(tiny("qwen2_5_vl")), settings(tmp_path, answers={"batch": 1})
    for fail_at in (3, 4 + 2):  # in the answers; then, two answers being there, in the states
        with pytest.raises(KeyboardInterrupt):
            training.train(target, RandomClips("qwen2_5_vl", 4, fail_at=fail_at), config)
    files = sorted((tmp_path / "states").rglob("*.safetensors"))
    assert len(read_answers(tmp_path / "answers")) == 4 and len(files) == 3
    before = [f.stat().st_mtime_ns for f in files]
    torn = tmp_path / "answers" / "answers-0.jsonl"
    torn.write_text(torn.read_text()[:-20])
    clips = RandomClips("qwen2_5_vl", 4)
    training.train(target, clips, config)
    assert [f.stat().st_mtime_ns for f in files] == before and len(read_answers(tmp_path / "answers")) == 4
    assert len(list((tmp_path / "states").rglob("*.safetensors"))) == 4
    with pytest.raises(ValueError, match="visual_layer=2, now it is 1: choose another folder"):
        training.train(target, clips, replace(config, run=str(tmp_path / "other"), recipe=Recipe(visual_layer=1)))


def test_states_on_disk_and_on_the_fly_train_alike(tiny, tmp_path):
    target, clips = Target(tiny("llava_onevision")), RandomClips("llava_onevision", 3, videos=2)
    for name, workers in (("disk", 0), ("fly", 0), ("readers", 1)):
        config = settings(tmp_path / name, states={"cache": name != "fly"}, optimisation={"workers": workers})
        training.train(target, clips, config)
    assert (
        log(tmp_path / "disk/run", "loss") == log(tmp_path / "fly/run", "loss") == log(tmp_path / "readers/run", "loss")
    )
    assert not (tmp_path / "fly/states").exists()
