"""The committed measurements: what is shown of them is what they say."""

import pytest

from bench import real_text
from bench import smollm2_report as report
from sparrow.files import read_json
from sparrow.smollm2.fetch import TAUGHT
from sparrow.smollm2.package import sha256

MEASURED = sorted(report.RESULTS.glob("*.json"))


def test_pages_are_rendered_from_the_results():
    assert report.PAGE.read_text() == report.page()
    if (report.RESULTS / "samples.json").exists():
        shown = report.samples_page(read_json(report.RESULTS / "samples.json"))
        assert (report.RESULTS / "samples.md").read_text() == shown


def test_the_document_shows_what_the_drafter_does():
    page = report.ROOT / "docs" / "smollm2.md"
    assert real_text.table(read_json(report.RESULTS / "drafter.json")) in page.read_text()


@pytest.mark.parametrize("file", MEASURED, ids=lambda file: file.stem)
def test_a_result_of_the_target_is_of_the_committed_one(file):
    made = read_json(file)
    assert (made.get("rows") or made["arms"]) and ("target" not in made or made["target"]["taught"] == sha256(TAUGHT))


def test_a_gap_of_none_is_no_figure():
    none = {"rows": [{"prompt": "a", "tokens": 3, "first": None, "others": 0}], "texts": 2}
    assert "equal on all 2 texts and 1 answers" in report.llama_line(none)
    some = {"rows": [*none["rows"], {"prompt": "b", "tokens": 9, "first": 4, "gap": 0.25, "others": 2}], "texts": 2}
    assert "1 of 2 answers are equal" in report.llama_line(some) and "by 0.25 (median" in report.llama_line(some)
    assert "83.3% of its 12 tokens" in report.llama_line(some)
