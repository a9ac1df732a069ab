"""What bench.real_arms makes of its prompts, logs and tapes, without SmolLM2."""

import json
import pathlib

import pytest
import torch

from bench import real_arms
from sparrow.evaluation.tape import record
from sparrow.files import append_lines
from tests.videos import sample_inputs

RESULT = pathlib.Path(real_arms.__file__).parent / "results" / "smollm2" / "arms.json"


def test_prompts_are_spread_and_kept(tmp_path):
    """A clip behind every three instructions; a file that is there stays as it is: answers belong to it."""
    file = real_arms.prompt_file(tmp_path, 6, 2)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [("video" in line) for line in lines] == [False, False, False, True] * 2
    assert [line["prompt"] for line in lines if "video" not in line] == real_arms.instructions("train", 6)
    assert all((tmp_path / line["video"]).stat().st_size > 0 for line in lines if "video" in line)
    file.write_text("kept")
    assert real_arms.prompt_file(tmp_path, 6, 2).read_text() == "kept"
    other = real_arms.prompt_file(tmp_path / "other", 3, 1, skip_text=3, skip_clips=1).read_text().splitlines()
    assert [json.loads(line) for line in other] == lines[4:]


def logs(run, **seconds):
    for name, each in seconds.items():
        rows = [{"training": 9}, *({"step": i, "seconds": each, "rows": 5} for i in range(3))]
        real_arms.folder_of(run, name.replace("_", " ")).mkdir()
        append_lines(real_arms.folder_of(run, name.replace("_", " ")) / "log.jsonl", map(json.dumps, rows))


def test_equal_seconds(tmp_path, monkeypatch):
    """Steps in inverse proportion to their seconds; an arm of about the first one's cost is not trained again."""
    monkeypatch.setattr(real_arms, "prompt_file", lambda run, text, clips: run / "prompts.jsonl")
    logs(tmp_path, shipped_recipe=2.0, AdamW=1.7, **{"1_pass": 1.25, "5_passes": 2.5, "25_steps": 4.0})
    config = real_arms.settings_of("1 pass" + real_arms.EQUAL, tmp_path, tmp_path)
    assert config.optimisation.steps == round(real_arms.STEPS * 2.0 / 1.25) and config.recipe.mtp_depth == 1
    again = {name: real_arms.costs_other_time(tmp_path, name) for name in ("AdamW", "1 pass", "5 passes", "25 steps")}
    assert again == {"AdamW": False, "1 pass": True, "5 passes": True, "25 steps": False}
    made = real_arms.row(tmp_path, "1 pass", config, [])
    assert made["step_seconds"] == 1.25 and made["rows"] == 5 * config.optimisation.steps


def test_a_tape_of_many_layers_serves_an_arm_of_some(tiny, monkeypatch):
    """Its states are those of a tape recorded with these layers alone."""
    model, inputs, options = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl"), {"do_sample": False, "max_new_tokens": 9}
    layers = (model.config.get_text_config().num_hidden_layers, 0, 1)
    monkeypatch.setattr(real_arms, "LAYERS", layers)
    whole = record(model, inputs, layers, options, seed=0)
    for some in (layers[:1], layers[:2], (layers[0], layers[2]), (1,)):
        seen, want = real_arms.seen_by(whole, some), record(model, inputs, some, options, seed=0)
        kept = {name: value for name, value in vars(seen).items() if len(value)}  # of the video nothing is
        assert "hidden" in kept and all(torch.equal(value, getattr(want, name)) for name, value in kept.items())


def test_an_unknown_arm(monkeypatch):
    monkeypatch.setattr(real_arms, "fetch", lambda: None)
    with pytest.raises(SystemExit, match=r"--only must name arms of shipped recipe, .*, got 3 passes"):
        real_arms.measure("runs/none", "3 passes")


def test_the_committed_table():
    """Every arm beside the first one, with a ratio to it."""
    text = real_arms.table(json.loads(RESULT.read_text()))
    heads, _, *rows = [[cell.strip(" |") for cell in line.split(" | ")] for line in text.splitlines()]
    ratio = heads.index("text, T = 0, over the first")
    assert heads[ratio - 6 : ratio] == [f"{kind}, T = {t}" for kind in real_arms.MEASURED for t in (0, 1)]
    assert rows[0][0] == real_arms.FIRST and not any(rows[0][ratio:])
    assert len(rows) > 15 and all(float(row[ratio].split()[0]) > 0.5 for row in rows[1:])
    assert {row[0] for row in rows} >= set(real_arms.ARMS)
