"""README's snippet, as it stands, in a checkout: it decodes a clip, prints a text, and finds the outputs identical."""

import pathlib
import re

import torch

ROOT = pathlib.Path(__file__).parents[2]


def test_the_snippet_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    text, speed, *report = capsys.readouterr().out.splitlines()
    assert len(text.split()) > 50 and "shapes" in text and "<|" not in text
    assert re.fullmatch(r"\d\.\d\d tokens per pass of the target, \d+ tokens/s", speed)
    assert report[0] == "identical to transformers' generate: yes" and len(report) == 4
    assert names["out"].stats.tau > 3  # the shipped drafter, not just any
    assert {x.device for x in names["inputs"].values() if isinstance(x, torch.Tensor)} == {names["model"].device}
