"""Text as it comes: lines end between words on a terminal, and nothing is changed elsewhere."""

import sys

import pytest

from sparrow.cli.stream import Text

TEXT = (
    "On a dark green background, four shapes\n\ncan be  seen "
    + "x" * 50
    + " within 8 seconds. A small yellow triangle "
)


def stream(*parts: str) -> None:
    text = Text(None)
    for part in parts:
        text.on_finalized_text(part)
    text.on_finalized_text("enters.", stream_end=True)


@pytest.mark.parametrize("cuts", [(), (5,), (5, 8, 9, 40, 41, 60)])
def test_text_elsewhere_is_as_it_is(cuts, capsys):
    stream(*(TEXT[a:b] for a, b in zip((0, *cuts), (*cuts, None), strict=True)))
    assert capsys.readouterr().out == TEXT + "enters.\n"


def test_lines_end_between_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    stream("On a dark green ", "background, four ", "shapes\n\ncan be ", "seen " + "x" * 50, " within 8 seconds. ")
    assert capsys.readouterr().out.splitlines() == [
        "On a dark green background,", "four shapes", "", "can be seen", "x" * 50, "within 8 seconds. enters.",
    ]  # fmt: skip
