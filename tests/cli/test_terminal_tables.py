"""Markdown in a terminal of 80 columns: every figure is there, no interval, nothing cut, no wider line."""

import itertools

import pytest

from sparrow.cli.tables import print_markdown, read

NAMES = ("transformers", "Sparrow, the paper's recipe", "prompt lookup", "MSD + VATA")


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def main_table() -> tuple[str, list[str]]:
    """As the table main: four columns say what a row is, then figures with intervals, then counts."""
    value, rows, figures = itertools.count(100), [], []
    for length, temperature, name in itertools.product((64, 4096), (0, 1), NAMES):
        own = [f"{next(value) / 100:.2f}" for _ in range(5)]
        figures += own
        rows.append(
            [str(length), str(temperature), name, "fastest: 16-6-4", *(f"{x} [0.91, 9.99]" for x in own), "4 of 4"]
        )
    head = ["visual tokens", "T", "system", "tree", "tau", "decode vs transformers", "decode vs plain loop"]
    return table([*head, "whole vs transformers", "whole vs plain loop", "identical"], rows), figures


def test_the_widest_table_fits(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    text, figures = main_table()
    print_markdown(f"Table main. Brackets: 95 % interval over clips.\n\n### Title of it\n\n{text}\n")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "…" not in out and "[" not in out and "|" not in out
    assert out.startswith("Table main.\nTitle of it\n") and "identical" not in out
    titles = [line.strip() for line in out.splitlines() if line.startswith("visual tokens =")]
    assert titles == [f"visual tokens = {n}, T = {t}" for n in (64, 4096) for t in (0, 1)]
    rows = [line for line in out.splitlines() if line.strip().startswith(NAMES)]
    assert len(rows) == 16 and all(row.strip().startswith(name) for row, name in zip(rows, NAMES * 4, strict=True))
    assert [cell for row in rows for cell in row.split("16-6-4")[1].split()] == figures


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_columns_that_do_not_fit_come_below(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    head = ["system", *(f"depth {n}" for n in range(16))]
    rows = [[name, *(f"{i}.{n:02d} [0.1, 0.2]" for n in range(15)), ""] for i, name in enumerate(("one", "two"))]
    print_markdown(table(head, rows))
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    for i, name in enumerate(("one", "two")):
        told = [cell for line in lines if line[:1] == [name] for cell in line[1:]]
        assert told == [f"{i}.{n:02d}" for n in range(15)]
    assert max(map(len, out.splitlines())) <= width and ("15" in out.split()) == False  # noqa: E712 (an empty column)


def test_prose_may_break(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    words = [f"recipe.setting{n}=true" for n in range(12)]
    print_markdown(table(["arm", "overrides"], [["Muon", " ".join(words)], ["text only", ""]]))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and all(word in out.split() for word in words)


def test_read():
    assert read("| a | b [x] |\n|---|---|\n| 1 | |\n| 2 | c |") == (["a", "b [x]"], [["1", ""], ["2", "c"]])
