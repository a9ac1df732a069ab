"""The first stages of training: the target's answers and its states along them."""

import functools
import multiprocessing
import pathlib
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparrow
from sparrow.files import lock, read_json, write_json
from sparrow.targets.adapter import Target
from sparrow.training import stages as training
from sparrow.training.answers import read_answers
from sparrow.training.recipe import Recipe
from sparrow.training.states import CachedStates
from tests.training.cases import RandomClips, log, settings
from tests.videos import FAMILIES, sample_inputs

ONE_BY_ONE = {"batch": 1, "ahead": 1, "workers": 1}


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


@pytest.mark.parametrize("videos", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_about_images(tiny, tmp_path, family, videos):
    """In batches of two prompts of one shape, images alone and beside a video: each as the target answers it alone."""
    model, clips = tiny(family), RandomClips(family, 4, videos=videos, images=1 + videos)
    config = settings(tmp_path, answers={"max_new_tokens": 8})
    found = training.prepare_answers(Target(model), clips, config, training.Ranks())
    assert [a.clip for a in found] == [0, 1, 2, 3] and len({a.ids for a in found}) == 4
    for answer in found:
        inputs = clips.inputs(answer.clip)
        want = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert list(answer.ids) == want.tolist()
        assert answer.text_tokens == int(Target(model).is_text(inputs["input_ids"]).sum()) > 0


class MixedClips(RandomClips):
    """Prompts of many lengths about nothing, an image, a video and both, in turn."""

    def inputs(self, clip: int):
        videos, images, text = clip % 2, clip // 2 % 2, 5 + 11 * (clip % 5)
        return sample_inputs(self.family, seed=clip, videos=videos, text=text, images=images)


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batches_answer_as_one_by_one(tiny, tmp_path, family):
    """Greedy and sampled, text, images and videos in one batch: a prompt's answer does not depend on its batch."""
    model, found = tiny(family), []
    for name, more in (("together", {"batch": 8}), ("alone", ONE_BY_ONE), ("budget", {"batch": 8, "batch_tokens": 90})):
        config = settings(tmp_path / name, answers={"max_new_tokens": 8, "temperatures": [0.0, 1.0], **more})
        clips = MixedClips(family, 8)
        found.append(training.prepare_answers(Target(model), clips, config, training.Ranks()))
    assert found[0] == found[1] == found[2] and len({a.ids for a in found[0]}) > 12
    for answer in found[0][::2]:
        inputs = clips.inputs(answer.clip)
        want = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert list(answer.ids) == want.tolist()


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


def test_a_folder_serves_other_temperatures(tiny, tmp_path):
    """One of the temperatures it holds gives that one's answers; a further one is added to it, and its states, too."""
    target, clips, found = Target(tiny("qwen2_5_vl")), RandomClips("qwen2_5_vl", 3), {}
    for temperatures in ([0.0, 1.5], [1.5], [0.7, 0.0]):
        config = settings(tmp_path, answers={"temperatures": temperatures})
        answers = training.prepare_answers(target, clips, config, training.Ranks())
        training.states_of(target, clips, config, answers, training.Ranks())
        assert {a.temperature for a in answers} == set(temperatures) and len(answers) == 3 * len(temperatures)
        found |= {(a.clip, a.temperature): a.ids for a in answers} | found  # what was there is kept
        assert all(found[a.clip, a.temperature] == a.ids for a in answers)
    assert len(read_answers(tmp_path / "answers")) == len(list((tmp_path / "states").rglob("*.safetensors"))) == 9


def test_a_folder_of_before_goes_on(tiny, tmp_path):
    """Its settings name the temperatures, those of the states beside the answers'."""
    target, clips, config = Target(tiny("qwen2_5_vl")), RandomClips("qwen2_5_vl", 2), settings(tmp_path)
    answers = training.prepare_answers(target, clips, config, training.Ranks())
    training.states_of(target, clips, config, answers, training.Ranks())
    for folder, within in (("answers", ()), ("states", ("answers",))):
        file = tmp_path / folder / "settings.json"
        kept = read_json(file)
        functools.reduce(dict.__getitem__, within, kept)["temperatures"] = [0.0]
        write_json(file, kept)
    assert training.prepare_answers(target, clips, config, training.Ranks()) == answers
    training.states_of(target, clips, config, answers, training.Ranks())
    write_json(file, kept | {"positions": "reference"})
    with pytest.raises(ValueError, match="states was made with positions='reference', now it is 'hf'"):
        training.states_of(target, clips, config, answers, training.Ranks())


def test_answers_and_states_go_on(tiny, tmp_path):
    """Interrupted stages keep what they have; a torn line or file is made again; other settings are refused."""
    target, config = Target(tiny("qwen2_5_vl")), settings(tmp_path, answers=ONE_BY_ONE)
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


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """(target, clips, settings, folder) of a finished run whose answers and states lie in its own folder."""
    target, clips = Target(tiny("qwen2_5_vl")), RandomClips("qwen2_5_vl", 4)
    folder = tmp_path_factory.mktemp("finished")
    training.train(target, clips, _own(folder))
    return target, clips, folder


def _own(folder: pathlib.Path, **sections):
    """Answers and states in <run>."""
    return settings(folder, **{name: {"folder": None, **sections.get(name, {})} for name in ("answers", "states")})


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run in another place."""
    target, clips, folder = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    return target, clips, _own(tmp_path), tmp_path / "run"


def contents(run: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_finished_run_can_be_moved(copy, finished):
    """Started again in its new place it has nothing to do, and all is as it was but for the place in config.yaml."""
    target, clips, config, run = copy
    before = contents(run)
    training.train(target, clips, config)
    after = contents(run)
    assert str(run).encode() in after.pop("config.yaml") and str(run).encode() not in before.pop("config.yaml")
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before)
    assert not any(str(finished[2]).encode() in text for text in after.values())


def test_a_lost_or_damaged_drafter_comes_back(copy):
    target, clips, config, run = copy
    before = contents(run / "drafter")
    (run / "drafter" / "config.json").unlink()
    (run / "drafter" / "model.safetensors").write_bytes(b"")
    training.train(target, clips, config)
    assert contents(run / "drafter") == before


@pytest.mark.parametrize("name", ["answers", "states"])
@pytest.mark.parametrize("text", ["", '{"target": ', "[1]"])
def test_damaged_settings_of_answers_and_states(copy, name, text):
    """They cannot be made up: refused by name; removed by the user they are written again."""
    target, clips, config, run = copy
    file = run / name / "settings.json"
    before = contents(run)
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"{file} is damaged.+ says what .+ remove this file alone"):
        training.train(target, clips, config)
    assert file.read_text() == text
    file.unlink()
    training.train(target, clips, config)
    assert contents(run)[f"{name}/settings.json"] == before[f"{name}/settings.json"]


@pytest.mark.parametrize("bad", ["\x00" * 40, "{", '{"clip": 1}', "3", '{"clip": 1, "ids": 4}'])
def test_a_damaged_answer_is_named_by_its_line(copy, bad):
    """Removed, as the message says, its clip is answered again."""
    target, clips, config, run = copy
    file = run / "answers" / "answers-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    wanted = read_answers(run / "answers")
    file.write_text("".join([lines[0], bad + "\n", *lines[2:]]))
    with pytest.raises(ValueError, match=rf"^{file}, line 2 is damaged: .+\. Remove this line: its clip is answered"):
        training.train(target, clips, config)
    file.write_text("".join([lines[0], *lines[2:]]))
    training.train(target, clips, config)
    assert read_answers(run / "answers") == wanted


@pytest.mark.parametrize("how", ["emptied", "torn", "zeros"])
def test_damaged_states_are_computed_again(copy, capsys, how):
    target, clips, config, run = copy
    file = sorted((run / "states").rglob("*.safetensors"))[1]
    whole = file.read_bytes()
    file.write_bytes({"emptied": b"", "torn": whole[:-50], "zeros": bytes(len(whole))}[how])
    training.train(target, clips, config)
    assert file.read_bytes() == whole
    assert f"{file.name} is damaged" in "".join(capsys.readouterr().err.split("\n"))


def test_states_of_another_answer_are_named(copy):
    run = copy[-1]
    answers = read_answers(run / "answers")
    states = CachedStates(run / "states")
    assert states.load(answers[1])["tokens"][-len(answers[1].ids) :].tolist() == list(answers[1].ids)
    other = replace(answers[1], ids=(*answers[1].ids[:-1], answers[1].ids[-1] + 1))
    with pytest.raises(ValueError, match=rf"^{states.file(other)} holds the states of another answer\. Remove this"):
        states.load(other)
    file = states.file(answers[1])
    save_file({"tokens": torch.arange(3)}, file)
    with pytest.raises(ValueError, match=rf"^{file} is damaged: .first.\. Remove this file"):
        states.load(answers[1])


def test_kept_states_are_compared_with_the_targets(copy):
    """A sample is computed again whenever a run starts; states of other weights are named."""
    target, clips, config, run = copy
    files = sorted((run / "states").rglob("*.safetensors"))
    kept = load_file(files[1])
    save_file(kept | {"hidden": kept["hidden"] * (1 + 1e-5)}, files[1])
    training.train(target, clips, config)
    save_file(kept | {"hidden": kept["hidden"].roll(1, dims=0)}, files[1])
    training.train(target, clips, replace(config, states=replace(config.states, check=0)))
    with pytest.raises(ValueError, match=rf"^{files[1]}: hidden is not what the target says now \(.* of its norm away"):
        training.train(target, clips, replace(config, states=replace(config.states, check=4)))
    save_file({k: v for k, v in kept.items() if k != "visual"}, files[1])
    with pytest.raises(ValueError, match=r": visual is not what the target says now \(none, now torch.float32"):
        training.train(target, clips, replace(config, states=replace(config.states, check=4)))


@pytest.mark.parametrize("name", ["answers", "states"])
def test_a_folder_that_another_process_fills_is_refused(copy, name):
    """What is whole can be read meanwhile."""
    target, clips, config, run = copy
    context = multiprocessing.get_context("fork")
    locked, done = context.Event(), context.Event()

    def fill():
        with lock(run / name):
            locked.set()
            done.wait(60)

    child = context.Process(target=fill)
    child.start()
    assert locked.wait(60)
    training.train(target, clips, config)
    file = next((run / name).rglob("answers-0.jsonl" if name == "answers" else "*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(BlockingIOError, match=rf"^{run / name} is in use by process {child.pid} on "):
        training.train(target, clips, config)
    assert file.read_bytes() == whole[:-20]
    done.set()
    child.join()
    training.train(target, clips, config)
    assert file.read_bytes() == whole


def test_states_on_disk_and_on_the_fly_train_alike(tiny, tmp_path):
    target, clips = Target(tiny("llava_onevision")), RandomClips("llava_onevision", 3, videos=2)
    for name, workers in (("disk", 0), ("fly", 0), ("readers", 1)):
        config = settings(tmp_path / name, states={"cache": name != "fly"}, optimisation={"workers": workers})
        training.train(target, clips, config)
    assert (
        log(tmp_path / "disk/run", "loss") == log(tmp_path / "fly/run", "loss") == log(tmp_path / "readers/run", "loss")
    )
    assert not (tmp_path / "fly/states").exists()
