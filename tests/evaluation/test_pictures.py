"""Pictures: one look per system, told apart without colours too; what is drawn is the JSON's; nothing is stale."""

import itertools
import json
import pathlib
import subprocess

import numpy as np
import pytest
from PIL import Image

from bench import report as bench_report
from sparrow.evaluation.report import pictures
from sparrow.evaluation.report.pictures import DIGEST, OTHERS, SYSTEMS, styles
from sparrow.evaluation.report.render import render
from sparrow.evaluation.report.speed import speeds
from sparrow.evaluation.tables import TABLES

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "miniature"

# Linear RGB as people with each kind of colour blindness see it (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, sight: str) -> np.ndarray:
    """CIE L*a*b* of "#rrggbb" as it is seen: in it a distance of 2 can just be told side by side."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = SIGHT[sight] @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(XYZ @ np.clip(linear, 1e-4, 1) / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_apart(sight):
    for group in (SYSTEMS.values(), OTHERS):
        near = [
            (a.colour, b.colour)
            for a, b in itertools.combinations(group, 2)
            if np.linalg.norm(lab(a.colour, sight) - lab(b.colour, sight)) < 12
        ]
        assert not near


def test_systems_are_apart_without_colours():
    every = [*SYSTEMS.values(), *OTHERS]
    assert len({(s.marker, s.hollow) for s in every}) == len(every)
    assert len({s.hatch for s in SYSTEMS.values()}) == len(SYSTEMS) and len({s.hatch for s in OTHERS}) == len(OTHERS)


def test_every_system_of_the_comparison_has_its_own_look():
    names = {arm.label for name in ("main", "length", "stages", "trees") for arm in TABLES[name].arms}
    assert names | {"transformers", "plain", "SpecVLM", "prompt lookup"} == set(SYSTEMS)
    assert styles(["mine", "MSD", "yours"]) == {"mine": OTHERS[0], "MSD": SYSTEMS["MSD"], "yours": OTHERS[1]}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, by file name, before they are closed."""
    found, write = {}, pictures.write

    def keep(figure, file):
        found[file.name] = figure
        write(figure, file)

    monkeypatch.setattr(pictures, "write", keep)
    return found


def result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_a_system_looks_alike_wherever_it_is(drawn, tmp_path):
    whole = result("length")
    fewer = {**whole, "cells": [c for c in whole["cells"] if c["arm"] in ("ViSpec", "MSD")]}
    for made in (whole, fewer):
        render(made, tmp_path)
        curves = [bars for axis in drawn["length_tau.png"].axes for bars in axis.containers]
        shown = {bars.get_label(): bars.lines[0] for bars in curves}
        assert set(shown) == {c["arm"] for c in made["cells"]}
        assert all(SYSTEMS[name].colour == line.get_color() for name, line in shown.items())
        assert all(SYSTEMS[name].marker == line.get_marker() for name, line in shown.items())


def test_bars_of_the_first_picture_are_the_results(drawn, tmp_path):
    """Worked out again from the cells: decoding and whole call over transformers' generate, tokens per second."""
    made = result("main")
    render(made, tmp_path)
    axes = drawn["main_speed.png"].axes
    names = {"Sparrow (shipped)": "Sparrow, shipped fastest", "ViSpec": "ViSpec fastest", "MSD": "MSD fastest",
             "Sparrow (paper)": "Sparrow, the paper's recipe fastest", "plain (no drafter)": "plain"}  # fmt: skip
    for (times, tokens), length in zip((axes[:2], axes[2:]), (64, 4096), strict=True):
        shown = [names.get(label.get_text(), label.get_text()) for label in times.get_yticklabels()]
        assert shown[0] == "Sparrow, shipped fastest" and len(shown) == 8 and str(length) in times.get_title(loc="left")
        cells = [
            next(c for c in made["cells"] if (c["system"], c["length"], c["temperature"]) == (system, length, 0.0))
            for system in shown
        ]
        assert [p.get_width() for p in times.patches] == [c["dsr_transformers"]["value"] for c in cells]
        assert list(times.lines[0].get_xdata()) == [c["esr_transformers"]["value"] for c in cells]
        per_second = [sum(c["per_clip"]["tokens"][:4]) / sum(c["per_clip"]["decode_seconds"]) for c in cells]
        assert [p.get_width() for p in tokens.patches] == per_second
        reference = per_second[shown.index("transformers")]
        assert [x / reference for x in per_second] == pytest.approx([p.get_width() for p in times.patches], abs=1e-3)
        assert [t.get_text() for t in tokens.texts] == [f"{x:.0f}" for x in per_second]


def test_systems_without_a_chosen_tree_are_left_out_only_where_others_have_one():
    made = result("main")
    assert {s.system for s in speeds(made)[64]} == {c["arm"] for c in made["cells"]} - {"MSD + VATA", "text-only"}
    fixed = {**made, "cells": [c for c in made["cells"] if "tree_choice" not in c]}
    assert {s.system for s in speeds(fixed)[64]} == {c["arm"] for c in made["cells"]}
    one = {**made, "cells": [c for c in made["cells"] if c["length"] == 1024]}
    assert list(speeds(one)) == [1024]


def committed(*suffixes: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        return []  # no checkout: nothing is committed
    return [p for p in listed.stdout.splitlines() if p.startswith(("bench/results", "docs")) and p.endswith(suffixes)]


def of_tables() -> list[pathlib.Path]:
    """The JSON of every table whose Markdown or picture is committed."""
    shown = [pathlib.Path(p) for p in committed(".png", ".md") if p.startswith("bench/results")]
    files = {
        next(iter(ROOT.glob(f"{p.parent}/{p.stem.rpartition('_')[0]}.json")), ROOT / p.with_suffix(".json"))
        for p in shown
    }
    return sorted(f for f in files if f.is_file() and "settings" in json.loads(f.read_text()))


@pytest.mark.parametrize("file", of_tables(), ids=lambda f: f.stem)
def test_what_is_committed_is_what_the_renderer_makes(file, tmp_path):
    """Markdown to the letter, pictures by what is plotted: fonts and pixels may differ from machine to machine."""
    text = render(json.loads(file.read_text()), tmp_path)
    if (markdown := file.with_suffix(".md")).exists():
        assert markdown.read_text() == text, f"stale: sparrow eval --render {file.relative_to(ROOT)}"
    for picture in file.parent.glob(f"{file.stem}*.png"):
        assert plotted(picture) == plotted(tmp_path / picture.name), f"stale: sparrow eval --render {file}"


def test_the_operators_picture_is_its_results(tmp_path):
    saved = json.loads((ROOT / "bench/results/cpu_ops.json").read_text())
    bench_report.plot(saved["results"], tmp_path / "ops.png")
    assert plotted(ROOT / "docs/cpu_ops.png") == plotted(tmp_path / "ops.png")


def plotted(picture: pathlib.Path) -> str:
    with Image.open(picture) as image:
        return image.info[DIGEST]


def test_digest_is_of_what_is_drawn(tmp_path):
    made = result("main")
    render(made, tmp_path)
    before = plotted(tmp_path / "main_speed.png")
    assert len(before) == 64
    cell = next(c for c in made["cells"] if c["system"] == "ViSpec fastest" and c["length"] == 4096)
    cell["esr_transformers"]["value"] += 0.001
    render(made, tmp_path)
    assert plotted(tmp_path / "main_speed.png") != before
