"""Evaluation: the replay is the live loop, intervals, the resumable file, tables, what goes wrong."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import sparrow_ext
from sparrow.drafters.network import SparrowDrafter
from sparrow.evaluation import evaluate, trees
from sparrow.evaluation import systems as one
from sparrow.evaluation.cells import acceptance_by_depth, faults, interval, quotient, speed_ratio, speeds
from sparrow.evaluation.evaluate import Evaluation, Known
from sparrow.evaluation.questions import form_of, question, sampling
from sparrow.evaluation.report.pivots import figure
from sparrow.evaluation.report.render import render
from sparrow.evaluation.systems import LOOKUP, PLAIN, TRANSFORMERS, Run, System
from sparrow.evaluation.tables import Plan
from sparrow.evaluation.tape import Key, Tape, Tapes, cached, model_hash, record, replay
from sparrow.miniature.model import SETTINGS
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig
from sparrow_ext.ops import tree_attention
from tests.pairs import miniature_pair


@pytest.fixture(scope="module")
def pair():
    import transformers

    transformers.logging.set_verbosity_error()
    return miniature_pair()


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    made = tmp_path_factory.mktemp("drafter")
    pair[2].save_pretrained(made)
    return str(made)


def ask(pair, number=0, length=64):
    return question(SETTINGS, pair[1], length, number, split="test")


def evaluation(pair, folder, tmp_path, progress=lambda *_: None, **changes):
    system = System("sparrow", "sparrow", folder, "8-4-4")
    values = {"points": ((64, 0.0), (64, 1.0)), "clips": 3, "live": 2, "live_others": 2, "timed": 2, "runs": 2}
    plan = Plan("main", (system, LOOKUP), **{**values, "max_new_tokens": 16, **changes})
    return Evaluation(plan, pair[0], pair[1], SETTINGS, {"sparrow": pair[2]}, tmp_path / "tapes", progress)


# ---- the replay ----


@pytest.mark.parametrize("tree", ["25-5-8", "4-4-1", "6-2-3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replay_emits_what_the_live_loop_emits(pair, folder, tree, temperature):
    model, _, drafter = pair
    lengths = set()
    for number in range(3):
        asked, options = ask(pair, number), sampling(temperature, 40)
        tape = record(model, asked.inputs, drafter.config.hidden_layer, options, seed=number)
        live = one.run(System("s", "sparrow", folder, tree), model, drafter, asked.inputs, options, seed=number)
        assert live.tokens == tape.tokens.tolist()
        emitted = replay(tape, drafter, TreeConfig.parse(tree))
        assert emitted == live.emitted and sum(emitted) == 39
        lengths |= set(emitted)
    assert len(lengths) >= 3  # otherwise equality would say little


def test_the_replay_depends_on_everything_on_the_tape(pair):
    model, _, drafter = pair
    tape = record(model, ask(pair).inputs, drafter.config.hidden_layer, sampling(0.0, 40), 0)
    shape = TreeConfig.parse("25-5-8")
    right = replay(tape, drafter, shape)
    for name in ("hidden", "prompt_hidden", "prompt_tokens"):
        value = getattr(tape, name)
        assert replay(replace(tape, **{name: value.roll(1, 0)}), drafter, shape) != right, name


def test_replay_up_to_an_end_of_sequence_token(pair, folder):
    model, _, drafter = pair
    asked = ask(pair, 1)
    tokens = record(model, asked.inputs, drafter.config.hidden_layer, sampling(0.0, 40), 0).tokens.tolist()
    seen = set()
    for stop in (0, 1, 2, 9, 20, 21, 22):
        options = {**sampling(0.0, 40), "eos_token_id": tokens[stop]}
        tape = record(model, asked.inputs, drafter.config.hidden_layer, options, 0)
        live = one.run(System("s", "sparrow", folder, "25-5-8"), model, drafter, asked.inputs, options, 0)
        assert len(tape.tokens) == tokens.index(tokens[stop]) + 1
        assert replay(tape, drafter, TreeConfig.parse("25-5-8")) == live.emitted
        seen.add(len(live.tokens))
    assert 1 in seen and len(seen) >= 4


def test_tapes_are_kept(pair, tmp_path):
    model, _, drafter = pair
    tapes, asked, key = Tapes(tmp_path / "a", model, 0, 12), [], Key("test", 64, 1, 0.0)

    def inputs():
        asked.append(1)
        return ask(pair, 1).inputs

    first, again = (tapes.load(key, drafter.config, inputs) for _ in range(2))
    other = Tapes(tmp_path / "a", model, 0, 12).load(key, drafter.config, lambda: pytest.fail("recorded twice"))
    made = record(model, ask(pair, 1).inputs, drafter.config.state_layers, sampling(0.0, 12), 1)
    for name, value in vars(made).items():
        assert all(torch.equal(getattr(tape, name), value) for tape in (first, again, other))
    assert len(asked) == 1 and isinstance(first, Tape) and len(first.hidden) == len(first.tokens) - 2
    names = {tapes.name(replace(key, **{n: v}), drafter.config) for n, v in asdict(replace(key, length=65)).items()}
    assert len(names) == 2  # the key's own, and that of another length


@pytest.mark.parametrize("how", ["emptied", "torn", "zeros"])
def test_a_damaged_tape_is_recorded_again(tmp_path, capsys, how):
    file, made = tmp_path / "tapes" / "a.safetensors", {"x": torch.arange(6.0).view(2, 3).T}
    assert torch.equal(cached(file, lambda: made)["x"], made["x"])
    whole = file.read_bytes()
    assert cached(file, lambda: pytest.fail("recorded twice")) and capsys.readouterr().err == ""
    file.write_bytes({"emptied": b"", "torn": whole[:-4], "zeros": bytes(len(whole))}[how])
    assert torch.equal(cached(file, lambda: made)["x"], made["x"]) and file.read_bytes() == whole
    assert f"{file} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", '{"provenance": [', "[1]", "\x00" * 30])
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "main.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/main.json is damaged: .+ Remove it: the table is measured"):
        evaluate.started(tmp_path / "main.json", {}, {}, {"cells": []})
    assert (tmp_path / "main.json").read_text() == text


def test_one_tape_serves_drafters_with_and_without_video(pair, tmp_path):
    """Visual rows are kept once per clip, length and layer, and are those of a whole recording, to the bit."""
    model, _, drafter = pair
    tapes, inputs = Tapes(tmp_path, model, 0, 12), lambda: ask(pair).inputs
    for temperature in (0.0, 1.0):
        for layer in (0, 2):
            sees = replace(drafter.config, positions="sequence", visual="rows", visual_layer=layer)
            tape = tapes.load(Key("test", 64, 0, temperature), sees, inputs)
            whole = record(model, inputs(), sees.state_layers, sampling(temperature, 12), 0, layer)
            assert len(tape.visual) == 64
            assert len(tape.visual_before) == 0, "only drafters with visual=states ask for them"
            for name, value in vars(replace(whole, visual_before=tape.visual_before)).items():
                assert torch.equal(getattr(tape, name), value), name
        blind = tapes.load(Key("test", 64, 0, temperature), drafter.config, lambda: pytest.fail("recorded again"))
        assert len(blind.visual) == 0
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4


def test_another_checkpoint_has_another_hash(pair):
    model = pair[0]
    before = model_hash(model)
    weight = model.model.language_model.layers[1].mlp.up_proj.weight
    kept = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = kept + 1
        changed = model_hash(model)
        weight[0, 0] = kept
    assert changed != before == model_hash(model)


# ---- one run ----


def test_transformers_and_lookup_are_counted_by_their_streams(pair):
    model, inputs, options = pair[0], ask(pair).inputs, sampling(0.0, 30)
    theirs = one.run(TRANSFORMERS, model, None, inputs, options, 0)
    looked = one.run(LOOKUP, model, None, inputs, options, 0)
    ours = one.run(PLAIN, model, None, inputs, options, 0)
    assert theirs.tokens == looked.tokens == ours.tokens and len(theirs.tokens) == 30
    assert theirs.emitted == ours.emitted == [1] * 29
    assert sum(looked.emitted) == looked.decode_tokens <= 29 and max(looked.emitted) > 1
    for run in (theirs, looked, ours):
        assert 0 < run.decode_seconds < run.seconds


def test_seeds_decide_the_sampling_of_transformers_too(pair):
    model, inputs, options = pair[0], ask(pair).inputs, sampling(1.0, 12)
    state = torch.get_rng_state()
    runs = [one.run(TRANSFORMERS, model, None, inputs, options, seed).tokens for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2] and torch.equal(state, torch.get_rng_state())


# ---- statistics ----


def test_interval_of_equal_clips_is_a_point():
    assert interval([(6, 3)] * 5, quotient) == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert interval([(6, 3)], quotient) == {"value": 2.0, "low": None, "high": None}
    assert interval([(0, 0), (0, 0)], quotient)["value"] is None
    assert interval([(10, 2, 5, 2), (30, 6, 15, 6)], speed_ratio)["value"] == 2.0
    with pytest.raises(ValueError, match="at least one clip"):
        interval([], quotient)


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        got = interval([(x, 1) for x in rng.exponential(3.0, 40)], quotient)
        assert got["low"] < got["value"] < got["high"]
        covered += got["low"] <= 3.0 <= got["high"]
    assert 0.86 <= covered / 200 <= 0.99


def test_acceptance_by_depth_by_hand():
    # accepted 0, 2, 1 and (cut short, left out) 0; then 2
    figures = acceptance_by_depth([[1, 3, 2, 1], [3, 2]], 3)
    assert [f["value"] for f in figures] == [0.75, pytest.approx(2 / 3, abs=1e-4), 0.0]


# ---- the whole ----


def test_cells_and_resuming(pair, folder, tmp_path):
    file = tmp_path / "result.json"

    class Killed(Exception):
        pass

    def kill(text, clips):
        if "T=1" in text and "clip 2" in text:
            raise Killed

    with pytest.raises(Killed):
        evaluation(pair, folder, tmp_path, kill).write(file, {"command": "first"})
    half = json.loads(file.read_text())
    assert [c["temperature"] for c in half["cells"]] == [0.0] * 4
    told: list[tuple[str, int]] = []
    resumed = evaluation(pair, folder, tmp_path, lambda text, runs: told.append((text, runs)))
    whole = resumed.write(file, {"command": "second"})
    seen = [text for text, _ in told]
    assert sum(runs for _, runs in told) == sum(
        resumed.plan.operations(1.0, clip) for clip in range(3)
    )  # all that was left, and no more
    assert json.loads(file.read_text()) == whole and whole["cells"][:4] == half["cells"]  # to the last second
    assert [p["command"] for p in whole["provenance"]] == ["first", "second"] and not any(
        "T=0, clip" in s for s in seen
    )
    assert len(whole["cells"]) == 8 and not faults(whole)
    for cell in whole["cells"]:
        ours = cell["system"] == "sparrow"
        assert cell["counts"]["clips"] == (3 if ours else 2) and cell["tau"]["value"] >= 1
        assert (cell["tau"]["value"] > 1.2) == ours or cell["system"] == "prompt lookup"
        assert len(cell["per_clip"]["seconds"]) == 2 and min(cell["per_clip"]["decode_seconds"]) > 0
        if ours:
            assert cell["identical"] == {"clips": 2, "of": 2, "to": "plain" if cell["temperature"] else "transformers"}
            assert cell["replay_equals_live"] == {"clips": 2, "of": 2} and len(cell["acceptance_by_depth"]) == 4
            assert cell["dsr_plain"]["low"] <= cell["dsr_plain"]["value"] <= cell["dsr_plain"]["high"]
        if ours or cell["system"] == "plain":
            stages = [sum(values) for values in zip(*cell["per_clip"]["stage_seconds"].values(), strict=True)]
            assert all(0 < a < b for a, b in zip(stages, cell["per_clip"]["seconds"], strict=True))
    with pytest.raises(ValueError, match="clips=3, this one has 4"):
        evaluation(pair, folder, tmp_path, clips=4).write(file, {})
    rendered(whole, tmp_path)


def rendered(result, tmp_path):
    """Table and pictures from the JSON alone."""
    result = json.loads(json.dumps(result))
    lines = [line for line in render(result, tmp_path / "pictures").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8 and all(line.count("|") == lines[0].count("|") for line in lines)
    sparrow = next(c for c in result["cells"] if c["system"] == "sparrow")
    assert any("| 64 | 0 | sparrow | 8-4-4 |" in line and figure(sparrow["tau"]) in line for line in lines)
    files = sorted((tmp_path / "pictures").glob("*"))
    assert [f.name for f in files] == ["main_speed.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") and f.stat().st_size > 8000 for f in files)


def test_a_tree_is_chosen_by_measured_speed(pair, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "CANDIDATES", ("2-2-1", "25-5-8"))
    monkeypatch.setattr(evaluate, "CLIPS", 2)
    model, tokenizer, drafter = pair
    system = System("fastest", "sparrow", folder, "fastest")
    plan = Plan("main", (system,), ((64, 0.0), (64, 1.0)), clips=2, live=2, timed=1, max_new_tokens=12)
    made = Evaluation(plan, model, tokenizer, SETTINGS, {"fastest": drafter}, tmp_path)
    cells = made.write(tmp_path / "chosen.json", {})["cells"]
    cell = cells[2]
    assert cell["tree_choice"] == cells[5]["tree_choice"]  # chosen once per length
    (tmp_path / "half.json").write_text(
        json.dumps({**json.loads((tmp_path / "chosen.json").read_text()), "cells": cells[:3]})
    )
    monkeypatch.setattr(evaluate, "choose", lambda *_: pytest.fail("chosen again"))
    resumed = Evaluation(plan, model, tokenizer, SETTINGS, {"fastest": drafter}, tmp_path)
    assert resumed.write(tmp_path / "half.json", {})["cells"][5]["tree_choice"] == cell["tree_choice"]
    rows = cell["tree_choice"]
    assert {r["tree"] for r in rows} == {"2-2-1", "25-5-8"} and cell["tree"] == rows[0]["tree"]
    assert rows[0]["tokens_per_second"] >= rows[1]["tokens_per_second"] > 0
    for row in rows:
        emitted = [
            replay(
                made.tapes.load(Key("dev", 64, n, 0.0), drafter.config, lambda: pytest.fail("recorded again")),
                drafter,
                TreeConfig.parse(row["tree"]),
            )
            for n in range(2)
        ]  # from the tapes that are there
        tau = sum(map(sum, emitted)) / sum(map(len, emitted))
        assert row["tau"] == pytest.approx(tau, abs=1e-4)
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["tau"] / row["round_ms"], rel=1e-2)
    assert cell["identical"]["clips"] == cell["replay_equals_live"]["clips"] == 2
    assert f"| fastest: {cell['tree']} |" in render(json.loads((tmp_path / "chosen.json").read_text()), tmp_path)


def test_what_is_known_is_of_these_weights_and_this_config(pair, tmp_path, folder):
    """In one process a replay is reused by another table, not by other weights in the same folder, nor overrides."""
    model, tokenizer, _ = pair
    known, seen = Known(), []
    for changes, weights in (({}, 1.0), ({}, 1.0), ({}, 0.5), ({"positions": "sequence"}, 0.5)):
        mine = SparrowDrafter.from_pretrained(folder, **changes)
        mine.fc.weight.data.mul_(weights)
        mine.save_pretrained(tmp_path / "mine")
        mine.attach(Target(model))
        plan = Plan("main", (System("s", "sparrow", str(tmp_path / "mine"), "8-4-4", changes),), ((64, 0.0),), clips=2,
                    live=2, max_new_tokens=16)  # fmt: skip
        made = Evaluation(plan, model, tokenizer, SETTINGS, {"s": mine.place(model.device, model.dtype)},
                          tmp_path / "tapes", known=known)  # fmt: skip
        cell = made.cells(64, 0.0)[0]
        assert cell["replay_equals_live"] == {"clips": 2, "of": 2}
        seen.append(len(known.replays))
    assert seen == [2, 2, 4, 6]


def test_a_wrong_operator_is_not_lossless(pair, folder, tmp_path, monkeypatch):
    def wrong(*args, **kwargs):
        out, lse = tree_attention.tree_attention(*args, **kwargs)
        return -out, lse

    monkeypatch.setattr(sparrow_ext, "tree_attention", wrong)
    result = evaluation(pair, folder, tmp_path, points=((64, 0.0),)).write(tmp_path / "wrong.json", {})
    assert "sparrow at 64 visual tokens, T=0: identical on 0 of 2 clips" in faults(result)
    cells = {c["system"]: c["identical"] for c in result["cells"]}
    assert cells["sparrow"]["clips"] == cells["plain"]["clips"] == 0


def test_plans_that_make_no_sense(folder):
    system = System("s", "sparrow", folder, "25-5-8")
    for changes, words in (
        ({"clips": 0}, "clips must be at least 1, got 0"),
        ({"clips": 2, "live": 3}, "timed <= live <= live_others <= clips"),
        ({"timed": -1}, "timed must be at least 0, got -1"),
        ({"clock": "sun"}, "clock must be one of wall, cpu, got 'sun'"),
    ):
        with pytest.raises(ValueError, match=words):
            Plan("main", (system,), ((64, 0.0),), **changes)
    with pytest.raises(ValueError, match="'s' twice"):
        Plan("main", (system, system), ((64, 0.0),))
    with pytest.raises(ValueError, match="at least one system"):
        Plan("main", (), ((64, 0.0),))
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'magic'"):
        System("s", "magic")
    with pytest.raises(ValueError, match="drafter and tree belong to kind 'sparrow'"):
        System("s", "plain", folder, "25-5-8")
    with pytest.raises(ValueError, match="overrides belong to kind 'sparrow'"):
        System("s", "plain", overrides={"visual": "none"})
    with pytest.raises(ValueError, match="temperature must be at least 0 and finite, got -1"):
        sampling(-1, 8)


def test_questions(pair):
    with pytest.raises(ValueError, match=r"a visual length must be one of 64, .*, got 65"):
        form_of(65, 0)
    assert {form_of(256, n) for n in range(4)} == {form_of(256, 0), form_of(256, 1)}
    same, other = ask(pair, 3), ask(pair, 3, length=128)
    assert same.clip.answer == other.clip.answer and same.clip.scene == other.clip.scene


def test_speeds_by_hand():
    """DSR is tokens per second behind the first token, ESR over the whole call, each over each baseline; medians."""

    def runs(decode_tokens, decode_seconds, seconds):
        tokens = list(range(decode_tokens + 1))
        return [[Run(tokens, s, d, decode_tokens, [1]) for d, s in zip(decode_seconds, seconds, strict=True)]]

    plan = {
        "ours": runs(9, (1.0, 9.0, 2.0), (3.0, 30.0, 5.0)),  # medians 2 and 5
        "transformers": runs(9, (8.0, 8.0, 8.0), (10.0, 10.0, 10.0)),
        "plain": runs(19, (4.0, 1.0, 90.0), (25.0, 2.0, 99.0)),  # medians 4 and 25
    }
    made = speeds(System("ours", "specvlm"), plan, 1)
    got = {name: figure["value"] for name, figure in made.items()}
    assert got == {
        "dsr_transformers": 4.0, "esr_transformers": 2.0,
        "dsr_plain": pytest.approx((9 / 2) / (19 / 4), abs=1e-4), "esr_plain": pytest.approx((10 / 5) / (20 / 25)),
    }  # fmt: skip
