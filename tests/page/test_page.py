"""The page's data, and that no text of it is HTML; without a browser."""

import base64
import io
import json
import math
import re

import av
import pytest

from sparrow.cli.page import TEMPLATE, check_place, page, page_data, write_page
from sparrow.drafters.recorded import walk
from tests.page.cases import NASTY, NEW, PROMPT, Nasty, shown


@pytest.fixture(scope="module")
def about():
    return shown()


@pytest.fixture(scope="module")
def data(about):
    return page_data(about, Nasty(), "pytest")


def test_tokens_and_rounds(about, data):
    """Every token once, in the round and of the kind that generate told."""
    stats = about.output.stats
    assert len(data["tokens"]) == NEW == 1 + sum(stats.emitted) and len(data["rounds"]) == stats.rounds
    assert [sum(t["round"] == r for t in data["tokens"]) for r in range(stats.rounds)] == stats.emitted
    kinds = [t["kind"] for t in data["tokens"]]
    assert kinds[0] == "first" and kinds.count("bonus") >= stats.rounds - 1
    assert kinds.count("accepted") == sum(map(min, stats.accepted, stats.emitted)) > 10
    text = "".join(t["text"] for t in data["tokens"])
    assert text == Nasty().decode(about.output.sequences[0, stats.prompt_tokens :].tolist())


def test_the_path_is_in_the_tree(about, data):
    """What a round emitted is its path through its tree, then the bonus token, which is no child of the path's end."""
    for told, made in zip(about.recorder.rounds(), data["rounds"], strict=True):
        assert [told.tokens[at] for at in told.path] == told.emitted[: len(told.path)]
        assert [told.parent[at] for at in told.path] == [0, *told.path][: len(told.path)]
        ends = told.path[-1] if told.path else 0
        if len(told.emitted) > told.accepted:
            children = [t for t, up in zip(told.tokens, told.parent, strict=True) if up == ends]
            assert told.emitted[-1] not in children and len(told.path) == told.accepted and made["bonus"] is not None
        else:
            assert made["bonus"] is None
    roots = [r.tokens[0] for r in about.recorder.rounds()]
    before = [r.emitted[-1] for r in about.recorder.rounds()[:-1]]
    assert roots[1:] == before


def test_probabilities_fall_along_the_tree(about):
    for told in about.recorder.rounds():
        assert told.probability is not None and len(told.probability) == len(told.tokens) == len(told.parent)
        assert told.probability[0] == 1.0 and len(told.tokens) > 4
        for at in range(1, len(told.tokens)):
            assert 0 < told.probability[at] <= told.probability[told.parent[at]] + 1e-6
        siblings: dict[int, float] = {}
        for at in range(1, len(told.tokens)):
            siblings[told.parent[at]] = siblings.get(told.parent[at], 0.0) + told.probability[at]
        assert all(total <= told.probability[up] + 1e-5 for up, total in siblings.items())


def test_depths(about, data):
    depths, stats = data["depths"], about.output.stats
    assert [d["went"] / d["of"] for d in depths] == pytest.approx(
        [x for x in stats.acceptance_by_depth if not math.isnan(x)]
    )
    assert sum(d["went"] for d in depths) == sum(stats.accepted)


def test_the_race(about, data):
    lanes = {lane["name"]: lane for lane in data["race"]}
    assert list(lanes) == ["transformers", "plain loop", "sparrow"] and lanes["sparrow"]["ours"]
    assert all(sum(n for _, n in lane["arrivals"]) == NEW for lane in lanes.values())
    assert lanes["transformers"]["whole"] == pytest.approx(50) and lanes["sparrow"]["whole"] == pytest.approx(200)


def test_a_race_of_one(about):
    """What was not run says so; the run itself is shown by its rounds' times."""
    about = shown(lanes=False)
    made = page_data(about, Nasty(), "pytest")
    lanes = {lane["name"]: lane for lane in made["race"]}
    for name in ("transformers", "plain loop"):
        assert lanes[name]["arrivals"] == [] and lanes[name]["note"] == "not run: it was not asked for"
    arrivals, stats = lanes["sparrow"]["arrivals"], about.output.stats
    assert [n for _, n in arrivals] == [1, *stats.emitted]
    assert arrivals[0][0] == pytest.approx(stats.seconds["prefill"], abs=1e-5)
    assert stats.total_seconds > arrivals[-1][0] > 0.5 * stats.total_seconds


def test_nothing_drafted():
    made = page_data(shown(drafts=False, lanes=False), Nasty(), "pytest")
    assert made["depths"] == [] and [lane["name"] for lane in made["race"]] == ["transformers", "plain loop"]
    assert all(r["texts"][1:] == r["path"] == [] and r["probability"] is None for r in made["rounds"])
    assert {t["kind"] for t in made["tokens"]} == {"first", "bonus"}


def test_a_stop_within_a_round(about):
    """Behind a stop nothing is shown, whatever the tree held; one token alone has no round."""
    tokens = about.output.sequences[0, 7:].tolist()
    cut = next(r for r in about.recorder.rounds() if r.accepted > 1)
    stopped = shown(lanes=False, eos_token_id=cut.emitted[0])
    made = page_data(stopped, Nasty(), "pytest")
    assert len(made["tokens"]) == tokens.index(cut.emitted[0]) + 1 and made["rounds"][-1]["bonus"] is None
    alone = page_data(shown(lanes=False, max_new_tokens=1), Nasty(), "pytest")
    assert alone["rounds"] == [] and [t["kind"] for t in alone["tokens"]] == ["first"]
    json.dumps(alone, allow_nan=False)


def test_frames(data):
    """At most 32 of them, whole and small, spread over the clip."""
    image, clip = data["clips"]
    assert image["name"] == "<image>.png" and image["about"] == "60 x 20 pixels" and len(image["frames"]) == 1
    assert len(clip["frames"]) == len(clip["seconds"]) == 32 and clip["seconds"] == sorted(clip["seconds"])
    assert clip["seconds"][0] == 0 and clip["seconds"][-1] == pytest.approx(7.6)
    kind, _, text = clip["frames"][7].partition(",")
    assert kind == "data:image/jpeg;base64"
    with av.open(io.BytesIO(base64.b64decode(text)), format="mjpeg") as file:
        frame = next(file.decode(video=0))
    assert (frame.width, frame.height) == (192, 32)


def test_no_text_is_html(about, tmp_path):
    """The data holds no "<": nothing ends the script, whatever a prompt, a name or a token is."""
    write_page(tmp_path / "a.html", about, Nasty(), "pytest </script>")
    text = (tmp_path / "a.html").read_text()
    before, after = TEMPLATE.read_text().split("__DATA__")
    assert text.startswith(before) and text.endswith(after)
    inside = text[len(before) : len(text) - len(after)]
    assert "<" not in inside and "\n" not in inside and "\u2028" not in inside
    made = json.loads(inside)
    assert made["question"] == PROMPT and made["made"]["command"] == "pytest </script>"
    assert all(any(nasty in t["text"] for t in made["tokens"]) for nasty in NASTY)
    assert page(made) == text


def test_the_page_needs_nothing_else():
    """No address but data: and the namespace of SVG, no import, and a policy that forbids what is missed here."""
    text = TEMPLATE.read_text()
    assert re.findall(r"https?://[^\s\"']+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"@import|\bfetch\(|XMLHttpRequest|WebSocket|url\(|\bimport\b|innerHTML|document\.write", text)
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"]
    assert "default-src 'none'" in text


def test_a_recorder_without_its_rounds(about):
    about.recorder.rounds()
    half = shown(lanes=False).recorder
    half.on_round([1], 0, 0.1)
    with pytest.raises(ValueError, match=r"a Recorder needs its on_round in generate, too: \d+ trees, \d+ rounds"):
        half.rounds()


def test_walk_takes_the_first_of_equal_children():
    assert walk([9, 5, 5, 6, 6], [-1, 0, 0, 2, 1], [5, 6]) == [1, 4]
    assert walk([9, 5], [-1, 0], []) == []


def test_places(tmp_path):
    check_place("--report", None)
    check_place("--report", str(tmp_path / "a.html"))
    with pytest.raises(FileNotFoundError, match=f"^--report: no such folder: {tmp_path}/gone$"):
        check_place("--report", str(tmp_path / "gone/a.html"))
    with pytest.raises(ValueError, match=f"^--report must be a file, got the folder {tmp_path}$"):
        check_place("--report", str(tmp_path))
