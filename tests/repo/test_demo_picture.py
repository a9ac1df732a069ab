"""README's picture is what tools/demo_picture.py makes of the committed run; it is a picture, and says what was run."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from tools.demo_picture import COLUMNS, PICTURE, RESULT, picture, placed, result_of


@pytest.fixture(scope="module")
def data():
    return json.loads(RESULT.read_text())


def test_it_is_of_the_committed_run(data):
    assert PICTURE.read_text() == picture(data), "stale: python tools/demo_picture.py"
    assert data["verdict"].startswith("identical to plain decoding: yes")


def test_it_needs_nothing_else(data):
    root = ET.fromstring(picture(data))
    kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert kinds == {"svg", "rect", "circle", "text", "tspan", "path", "g", "set"}
    assert re.findall(r"https?://[^\"]+", picture(data)) == ["http://www.w3.org/2000/svg"]


def test_what_moves_is_the_race(data):
    """One group for each arrival, hidden until its time; both lanes hold the whole text."""
    root = ET.fromstring(picture(data))
    space = "{http://www.w3.org/2000/svg}"
    hidden = [float(group.find(f"{space}set").get("dur")[:-1]) for group in root.iter(f"{space}g")]
    lanes = [x["arrivals"] for x in data["race"] if x["name"] in ("transformers", "sparrow")]
    told = [seconds for arrivals in lanes for seconds, _ in arrivals]
    assert sorted(hidden) == pytest.approx(sorted([*told, *(arrivals[-1][0] for arrivals in lanes)]), abs=1e-3)
    said = [text.text for group in root.iter(f"{space}g") for text in group.iter(f"{space}text")]
    answer = "".join(token["text"] for token in data["tokens"]).replace("<|im_end|>", "")
    bare = "".join("".join(answer.split()))
    assert "".join("".join(said).split()).count(bare) == 2


def test_lines_end_between_words():
    texts = ["On", " a", " dark", "ish", " x" * 30, "\n", "y", ""]
    parts = placed(texts)
    lines: dict[int, str] = {}
    for line, column, text in (part for own in parts for part in own):
        assert len(lines.get(line, "")) <= column + len(text) <= COLUMNS + 1
        lines[line] = lines.get(line, "").ljust(column) + text
    assert " ".join(" ".join(lines.values()).split()) == " ".join("".join(texts).split())
    assert parts[7] == []


def test_a_page_without_a_race_is_refused(tmp_path):
    (tmp_path / "a.html").write_text("<html>")
    with pytest.raises(ValueError, match=r"a\.html is no page of --report"):
        result_of(tmp_path / "a.html")
    lane = '<script type="application/json" id="data">{"race": [{"arrivals": []}]}</script>'
    (tmp_path / "a.html").write_text(lane)
    with pytest.raises(ValueError, match="has lanes that were not run"):
        result_of(tmp_path / "a.html")
