"""The tables of `sparrow eval` at tiny size, end to end: arms, overrides, trees, figures, rendering, resuming."""

import json
import multiprocessing
import pathlib
import shutil
from dataclasses import replace

import numpy as np
import pytest

from sparrow.cli import eval as cli_eval
from sparrow.cli import main as cli
from sparrow.cli.parser import parse
from sparrow.drafters.network import SparrowDrafter
from sparrow.evaluation import evaluate as evaluation
from sparrow.evaluation import trees
from sparrow.evaluation.cells import interval, speed_ratio
from sparrow.evaluation.report.pivots import paired_tau
from sparrow.evaluation.tables import TABLES, Arm, grid, systems, table_of
from sparrow.files import lock
from sparrow.miniature import shipped as miniature
from sparrow.targets.adapter import Target
from tests.drafters.visual_cases import random_drafter
from tests.pairs import miniature_pair, write_miniature_pair

SIZES = ["--clips", "2", "--live", "1", "--live-others", "1", "--max-new-tokens", "12", "--runs", "1"]
NAMES = ["paper", "msd", "vispec", "text_only", "msd_mtp1", "seq_mtp1", "seq_mtp0"]
NAMES += [arm.drafter for arm in TABLES["options"].arms if arm.drafter not in ("shipped", *NAMES)]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    """A pair that takes the synthetic world's clips, and every arm: its drafter, fed as each arm is."""
    folder = tmp_path_factory.mktemp("small")
    write_miniature_pair(folder)
    for name in NAMES:
        shutil.copytree(folder / "drafter", folder / "arms" / name)
    random_drafter(Target(miniature_pair()[0]), "ViSpec").save_pretrained(folder / "arms" / "vispec")
    for name in ("msd", "msd_mtp1", "seq_mtp1", "seq_mtp0"):
        file = folder / "arms" / name / "config.json"
        more = {"positions": "sequence", "visual": "rows" if name.startswith("msd") else "none"}
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    eagle3 = {"layer": "eagle3", "visual": "states", "positions": "sequence"}
    SparrowDrafter.from_target(Target(miniature_pair()[0]), **eagle3).save_pretrained(folder / "arms" / "eagle3")
    record = {"overrides": "recipe.mtp_depth=3", "seconds": 12.6, "steps": 40, "seed": 7}
    (folder / "arms" / "mtp3_tree" / "training.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(autouse=True)
def shipped(small, monkeypatch):
    """The small pair in place of the shipped one; layers and lengths that it has."""
    monkeypatch.setattr(miniature, "ARMS", small / "arms")
    monkeypatch.setattr(miniature, "pair", lambda folder=small: (small / "target", small / "drafter"))
    monkeypatch.setattr(cli_eval, "pair", lambda folder: (small / "target", small / "drafter"))
    monkeypatch.setattr(evaluation, "CLIPS", 2)
    monkeypatch.setattr(trees, "CANDIDATES", ("2-2-1", "8-4-4"))
    for arm in TABLES["ablation"].arms:
        if arm.overrides.get("visual_layer"):
            monkeypatch.setitem(arm.overrides, "visual_layer", 2)


def evaluate(out, *more: str, sizes: list[str] = SIZES) -> dict[str, dict]:
    assert cli.main(["eval", "--out", str(out), *sizes, *more, "--debug"]) == 0
    return {f.stem: json.loads(f.read_text()) for f in pathlib.Path(out).glob("*.json")}


def fails(capsys, argv: list[str], *words: str) -> None:
    """Non-zero exit, one line on stderr with the words."""
    assert cli.main(argv) not in (0, None)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparrow: ")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines


def table(text: str, title: str) -> list[list[str]]:
    """The rows of the Markdown table below a title."""
    below = text.split(f"### {title}\n\n")[1].split("\n\n", maxsplit=1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in below if not line.startswith("|---")]


def test_every_arm_draws_what_the_table_says(small, tmp_path, capsys):
    """Overrides reach the drafter: with VATA the same weights see no video; the JSON says so."""
    result = evaluate(tmp_path, "--table", "ablation", "--lengths", "64", "256", "--tree", "8-4-4")["ablation"]
    rows = {s["arm"]: s for s in result["settings"]["systems"]}
    assert len(rows) == 8 and rows["MTP- IVSB- VATA-"]["overrides"] == {"visual": "rows", "visual_layer": 0}
    assert rows["MTP+ IVSB+ VATA-"] == {
        "name": "MTP+ IVSB+ VATA- 8-4-4", "kind": "sparrow", "drafter": "seq_mtp1", "tree": "8-4-4",
        "overrides": {"visual": "rows", "visual_layer": 2}, "arm": "MTP+ IVSB+ VATA-",
    }  # fmt: skip
    assert rows["MTP- IVSB- VATA+"]["drafter"] == "msd" and rows["MTP- IVSB- VATA+"]["overrides"] == {"visual": "none"}
    for label, layer in (("MTP- IVSB- VATA-", 0), ("MTP- IVSB+ VATA-", 2), ("MTP- IVSB- VATA+", None)):
        arm = next(a for a in TABLES["ablation"].arms if a.label == label)
        made = SparrowDrafter.from_pretrained(miniature.drafter_folder(arm.drafter), **arm.overrides)
        assert made.config.seen_layer == layer
    seen = [
        next(c["per_clip"] for c in result["cells"] if c["arm"] == f"MTP- IVSB{x} VATA{y}") for x in "-+" for y in "-+"
    ]
    assert seen[0] != seen[1] == seen[3] != seen[2] != seen[0]
    assert all(c["replay_equals_live"] == {"clips": 1, "of": 1} for c in result["cells"])
    assert not any(key in c for c in result["cells"] for key in ("dsr_plain", "esr_plain", "tree_choice"))
    shown = table((tmp_path / "ablation.md").read_text(), "tau, T = 0, by visual tokens")
    assert shown[0] == ["system", "tree", "64", "256", "256 / 64"] and len(shown) == 9
    assert all(cell not in ("", "-") for row in shown for cell in row)


def test_tau_over_lengths(small, tmp_path, capsys):
    more = ["--table", "length", "--lengths", "64", "256"]
    result = evaluate(tmp_path, *more)["length"]
    names = list(dict.fromkeys(c["system"] for c in result["cells"]))
    assert len(names) == 6 * 2 + 2 and not {"transformers", "plain"} & set(names)
    for cell in result["cells"]:
        drafts = cell["tree"] is not None
        assert cell["counts"] == {**cell["counts"], "clips": 2 if drafts else 1, "live": 1, "timed": 0}
        assert (cell["identical"] is None) == (cell["system"] == "prompt lookup")
        assert cell["identical"] in (None, {"clips": 1, "of": 1, "to": "transformers"})
    before = (tmp_path / "length.md").read_text()
    shown = table(before, "tau, T = 0, by visual tokens")
    short, long = (
        next(c for c in result["cells"] if c["system"] == "MSD 40-10-6" and c["length"] == n) for n in (64, 256)
    )
    ratio = interval(
        [(a, b, c, d) for a, b, c, d in zip(long["per_clip"]["tokens"], long["per_clip"]["rounds"],
                                            short["per_clip"]["tokens"], short["per_clip"]["rounds"], strict=True)],
        speed_ratio,
    )  # fmt: skip
    row = next(r for r in shown if r[:2] == ["MSD", "40-10-6"])
    assert row[2].startswith(f"{short['tau']['value']:.2f} [") and row[3].startswith(f"{long['tau']['value']:.2f} [")
    assert row[4] == f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    assert {f.name for f in tmp_path.glob("*.png")} == {"length_tau.png"}
    for file in (tmp_path / "length.md", tmp_path / "length_tau.png"):
        file.unlink()
    for path in (tmp_path, tmp_path / "length.json"):
        assert cli.main(["eval", "--render", str(path)]) == 0
        assert (tmp_path / "length.md").read_text() == before and (tmp_path / "length_tau.png").stat().st_size > 8000
    timed = evaluate(tmp_path / "timed", *more, "--timed", "1", "--tree", "8-4-4")["length"]
    assert {c["system"] for c in timed["cells"]} >= {"transformers", "plain"}
    assert (tmp_path / "timed" / "length_speed.png").exists()
    assert (
        len(table((tmp_path / "timed" / "length.md").read_text(), "DSR over our plain loop, T = 0, by visual tokens"))
        == 1 + 10
    )


def test_where_the_time_goes(small, tmp_path, capsys):
    more = ["--clips", "2", "--live", "2", "--live-others", "2", "--runs", "2", "--lengths", "64"]
    result = evaluate(tmp_path, "--table", "stages", *more)["stages"]
    cells = {c["system"]: c for c in result["cells"]}
    assert [c["arm"] for c in result["cells"]][2:] == ["Sparrow, the paper's recipe", "Sparrow, shipped"]
    assert "stage_seconds" not in cells["transformers"]["per_clip"]
    ours, plain = result["cells"][2]["per_clip"], cells["plain"]["per_clip"]
    text = (tmp_path / "stages.md").read_text()
    first, second = (table(text, title) for title in ("Share of the time in all stages", "What a round costs"))
    assert first[0][4:] == ["prefill", "draft", "verify", "sample", "commit"] and len(first) == 4 and len(second) == 3
    row = next(r for r in first if r[2] == "Sparrow, the paper's recipe")
    whole = sum(map(sum, ours["stage_seconds"].values()))
    for name, cell in zip(first[0][4:], row[4:], strict=True):
        share = sum(ours["stage_seconds"][name]) / whole
        assert float(cell.partition("%")[0]) == pytest.approx(100 * share, abs=0.06)
    cost = [
        sum(sum(s) for n, s in of["stage_seconds"].items() if n != "prefill") / sum(of["rounds"])
        for of in (ours, plain)
    ]
    row = next(r for r in second if r[2] == "Sparrow, the paper's recipe")
    assert float(row[5].partition(" ")[0]) == pytest.approx(cost[0] / cost[1], abs=0.006)
    assert sum(float(cell.split(" ")[0]) for cell in row[6:10]) == pytest.approx(cost[0] / cost[1], abs=0.03)
    theirs = cells["transformers"]["per_clip"]["decode_seconds"]
    clips = sorted(b / a for a, b in zip(ours["decode_seconds"], theirs, strict=True))
    assert [float(x) for x in row[11].split(", ")] == pytest.approx([clips[0], sum(clips) / 2], abs=0.006)
    assert (tmp_path / "stages_time.png").stat().st_size > 8000
    argv = ["eval", "--out", str(tmp_path / "x"), *SIZES, "--table", "stages", "--lengths", "64"]
    fails(capsys, [*argv, "--timed", "0"],
          "table stages is of times: --timed must be at least 1")  # fmt: skip
    watch = ["eval", "--out", str(tmp_path / "x"), "--table", "watch", "--tree", "2-2-1"]
    fails(capsys, watch, "table watch is of the target alone: it takes no --tree")


def test_trees_and_depths(small, tmp_path, capsys):
    result = evaluate(tmp_path, "--table", "trees", "--lengths", "64", "--tree", "4-4-1", "--tree", "8-4-4")["trees"]
    text = (tmp_path / "trees.md").read_text()
    shown = table(text, "tau, T = 0, 64 visual tokens")
    assert [row[0] for row in shown[1:]] == ["4-4-1", "8-4-4"] and len(shown[0]) == 1 + 4
    depths = table(text, "Accepted at each depth, of the paths that got there, T = 0, 64 visual tokens")
    assert len(depths) == 1 + 8 and depths[0][2:] == ["1", "2", "3", "4"]
    chain = next(c for c in result["cells"] if c["system"] == "Sparrow, shipped 4-4-1")
    assert shown[1][1].startswith(f"{chain['tau']['value']:.2f}")
    assert depths[1][2].startswith(f"{chain['acceptance_by_depth'][0]['value']:.2f}")
    assert {f.name for f in tmp_path.glob("*.png")} == {"trees_tau.png", "trees_depth.png"}


def test_quick_is_every_table(small, tmp_path, capsys):
    for name, made in TABLES.items():
        less = made.small()
        assert set(less.points) <= set(made.points) and less.clips < made.clips and less.live <= made.live, name
        assert {arm.label for arm in less.arms} == {arm.label for arm in made.arms} and less.others == made.others, name
    results = evaluate(tmp_path, "--quick", "--lengths", "64", "--temperature", "0")
    assert set(results) == set(TABLES) == {f.stem for f in tmp_path.glob("*.md")}
    names = {c["system"] for c in results["main"]["cells"]}
    assert {"transformers", "plain", "SpecVLM", "prompt lookup", "Sparrow, shipped 30-4-8"} <= names
    assert len(names) == 4 + 7 and all(len(r.get("cells", r.get("rows"))) for r in results.values())


def test_options_are_compared_with_the_first(small, tmp_path, capsys):
    result = evaluate(tmp_path, "--table", "options", "--lengths", "64")["options"]
    text = (tmp_path / "options.md").read_text()
    arms = [arm.label for arm in TABLES["options"].arms]
    said = {row[0]: row[1:] for row in table(text, "The arms")}
    trained = next(arm.label for arm in TABLES["options"].arms if arm.drafter == "mtp3_tree")
    assert said[trained] == ["recipe.mtp_depth=3", "13", "40", "7"]
    assert said[arms[0]] == ["-"] * 4 and list(said)[1:] == arms
    shown = table(text, f"tau over that of {arms[0]}, paired over clips")
    assert shown[0][1:3] == ["25-5-8, T=0, 64", "25-5-8, T=1, 64"] and shown[0][-1] == "40-10-6, T=0, all"
    assert len(shown) == len(arms) and set(shown[-1][1:]) == {"1.000 [1.000, 1.000]"}  # the same weights
    assert (tmp_path / "options_ratio.png").stat().st_size > 8000
    assert result["training"]["mtp3_tree"]["steps"] == 40 and result["training"]["paper"] is None


def test_a_killed_table_goes_on(small, tmp_path, capsys, monkeypatch):
    more = ["--table", "options", "--lengths", "64", "128", "--temperature", "0", "--tree", "8-4-4"]
    whole = evaluate(tmp_path / "whole", *more)["options"]
    half = {**whole, "cells": [c for c in whole["cells"] if c["length"] == 64]}
    (tmp_path / "options.json").write_text(json.dumps(half))
    resumed = evaluate(tmp_path, *more)["options"]
    assert resumed["cells"] == whole["cells"] and len(resumed["provenance"]) == 2
    argv = ["eval", "--out", str(tmp_path), *SIZES, *more]
    fails(capsys, [*argv, "--seed", "1"], "options.json", "seed=0, this one has 1")
    (tmp_path / "length.json").write_text(json.dumps(half))
    fails(capsys, [*argv, "--table", "length"], "table='options', this one has 'length'")


def test_two_evaluations_of_one_table_at_once(small, tmp_path, capsys):
    """The second is refused with the first one's number; another table of the same folder is not."""
    context = multiprocessing.get_context("fork")
    locked, done = context.Event(), context.Event()

    def first():
        with lock(tmp_path / "options.json"):
            locked.set()
            done.wait(120)

    child = context.Process(target=first)
    child.start()
    assert locked.wait(60)
    more = ["--lengths", "64", "--temperature", "0", "--tree", "8-4-4"]
    argv = ["eval", "--out", str(tmp_path), *SIZES, *more, "--table"]
    fails(capsys, [*argv, "options"], f"{tmp_path}/options.json is in use by process {child.pid} on ")
    assert not (tmp_path / "options.json").exists()
    assert cli.main([*argv, "length"]) == 0 and (tmp_path / "length.json").exists()
    done.set()
    child.join()
    (tmp_path / "options.json").write_text('{"settings"')
    fails(capsys, [*argv, "options"], f"{tmp_path}/options.json is damaged: ")
    fails(capsys, ["eval", "--render", str(tmp_path / "options.json")], f"{tmp_path}/options.json is damaged: ")


def test_a_ratio_by_hand():
    """Clips are drawn together: where one is 1.5 times the other on every clip, so is every draw."""
    rng = np.random.default_rng(0)
    tokens, rounds = rng.integers(50, 200, 20), rng.integers(10, 40, 20)
    one = {"per_clip": {"tokens": tokens.tolist(), "rounds": (3 * rounds).tolist()}}
    two = {"per_clip": {"tokens": tokens.tolist(), "rounds": (2 * rounds).tolist()}}
    assert paired_tau([two], [one]) == {"value": 1.5, "low": 1.5, "high": 1.5}
    three = {"per_clip": {"tokens": [10, 20], "rounds": [5, 5]}}
    four = {"per_clip": {"tokens": [10, 20], "rounds": [10, 5]}}
    assert paired_tau([three], [four])["value"] == (30 / 10) / (30 / 15)
    assert paired_tau([three, three], [four])["value"] == (60 / 20) / (30 / 15)


def test_a_drafter_of_ones_own_in_every_table(small, tmp_path, capsys):
    for name, made in TABLES.items():
        if not made.visual:
            changed = cli_eval.changed(made, parse(["eval", "--drafter", f"mine={small / 'drafter'}"]))
            assert [arm.label for arm in changed.arms] == ["mine"] and changed.points == made.points, name
    more = ["--drafter", f"mine={small / 'drafter'}", "--drafter", "msd", "--lengths", "64", "--systems", "sparrow"]
    result = evaluate(tmp_path, "--table", "length", *more)["length"]
    names = [f"{name} {tree}" for name in ("mine", "msd") for tree in ("25-5-8", "40-10-6")]
    assert [c["system"] for c in result["cells"]] == names


def test_what_is_not_there(small, tmp_path, capsys, monkeypatch):
    argv = ["eval", "--out", str(tmp_path), *SIZES]
    fails(capsys, [*argv, "--table", "figures"], "--table must be one of main, length", "'figures'")
    fails(capsys, [*argv, "--drafter", "mine=/no/where"], "no drafter '/no/where'", "an arm (eagle3, msd, ")
    shutil.copytree(small / "arms", tmp_path / "arms")
    shutil.rmtree(tmp_path / "arms" / "vispec")
    monkeypatch.setattr(miniature, "ARMS", tmp_path / "arms")
    fails(capsys, [*argv, "--table", "length"], "table length, ViSpec: no drafter 'vispec'", "paper")
    fails(capsys, ["eval", "--render", str(tmp_path / "none.json")], "--render", "none.json")
    fails(capsys, ["eval", "--render", str(tmp_path / "arms")], "--render", "folder with a table's JSON")
    (tmp_path / "bad.json").write_text(json.dumps({"cells": [1]}))
    fails(capsys, ["eval", "--render", str(tmp_path / "bad.json")], "must be of a table", "None")
    fails(capsys, [*argv, "--table", "options", "--live", "3"], "timed <= live <= live_others <= clips")
    fails(capsys, [*argv, "--table", "options", "--temperature", "-1"], "temperature must be at least 0", "got -1")
    fails(capsys, [*argv, "--table", "options", "--lengths", "65"], "visual length must be one of 64", "got 65")
    fails(capsys, [*argv, "--out", str(tmp_path / "bad.json")], "--out must be a folder")
    fails(
        capsys, [*argv, "--table", "trees", "--systems", "lookup", "--lengths", "64"], "needs a system with a drafter"
    )
    with pytest.raises(ValueError, match="got 'none'"):
        table_of("none", quick=True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tree", "auto"], "--tree auto, chosen while decoding, needs --clips FILE.jsonl"),
        (["--tree", "8-3-4", "--tree", "fastest", "--clips", "x.jsonl"], "--tree fastest is chosen on synthetic clips"),
    ],
)
def test_the_two_ways_to_choose_a_tree(capsys, more, words):
    fails(capsys, ["eval", *more], words)


def test_trees_of_an_arm():
    made = replace(
        TABLES["main"], trees=("own", "25-5-8"), arms=(Arm("a", "x", trees=("12-6-2", "fastest")),), others=()
    )
    assert [s.name for s in systems(made, {"a": "25-5-8"})] == ["a 25-5-8", "a 12-6-2", "a fastest"]
    assert grid((1, 2), 0.0, 1.0) == ((1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0))


@pytest.mark.parametrize(("name", "rows"), [("watch", 3), ("layer_cut", 4)])
def test_what_the_target_sees(small, tmp_path, capsys, name, rows):
    more, sizes = ["--table", name, "--lengths", "64"], ["--clips", "2"]
    result = evaluate(tmp_path, *more, sizes=sizes)[name]
    assert len(result["rows"]) == rows and result["settings"]["clips"] == 2
    assert len((tmp_path / f"{name}.md").read_text().strip().splitlines()) == rows + 4
    assert (tmp_path / f"{name}.png").stat().st_size > 8000
    assert evaluate(tmp_path, *more, sizes=sizes)[name]["rows"] == result["rows"]  # not measured again
    fails(capsys, ["eval", "--out", str(tmp_path), *more, "--clips", "3"], "clips=2, this one has 3")
    fails(capsys, ["eval", "--out", str(tmp_path / "x"), "--table", "layer_cut", "--lengths", "64", "128"], "takes one")
