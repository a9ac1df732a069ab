"""docs/tour.ipynb runs, and says what its committed outputs say."""

import copy
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
FILE = ROOT / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(FILE, as_version=4)


def said(cell) -> str:
    """What a cell prints, without shares, which another processor rounds in another way."""
    return re.sub(r"\d+%", "%", "".join(out.text for out in cell.outputs if out.output_type == "stream"))


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_committed_as_it_ran(committed):
    """All of it, from the top, once, without an error or a warning; and small."""
    cells = code(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell.outputs]
    assert {out.output_type for out in outputs} == {"stream", "display_data"}
    assert all(out.name == "stdout" for out in outputs if out.output_type == "stream")
    assert FILE.stat().st_size < 40_000


def test_it_shows_what_it_is_about(committed):
    text = "\n".join(map(said, code(committed)))
    assert "identical: True" in text and "identical to transformers' generate: yes" in text
    assert re.search(r"tau: [3-7]\.\d\d tokens per round", text) and text.count("✓") > 2
    assert "kept rows: [0, 2, 3] emitted: [12, 13, 99]" in text


def test_it_runs(committed, monkeypatch):
    """In a process of its own, in its folder. What is of time (tagged so) may differ."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'python'}")
    made = copy.deepcopy(committed)
    client = NotebookClient(made, timeout=600, kernel_name="python3", resources={"metadata": {"path": FILE.parent}})
    client.execute()
    compared = 0
    for before, now in zip(code(committed), code(made), strict=True):
        assert [out.output_type for out in now.outputs] == [out.output_type for out in before.outputs]
        if "times" not in before.metadata.get("tags", []):
            assert said(now) == said(before), before.source
            compared += 1
    assert compared >= 6
