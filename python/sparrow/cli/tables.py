"""Markdown with tables, as it reads in a terminal: without intervals, and no line wider than that."""

import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

INTERVAL = re.compile(r" ?\[[^\]]*\d[^\]]*\]")  # 2.41 [2.30, 2.52]
FIGURE = re.compile(r"[-\d.]|$")
ABOUT_INTERVALS = re.compile(r" ?Brackets: [^.]*\.")
PROSE = 50  # characters of a cell that may break
SUMMED_UP = ("identical", "replay = live")  # a sentence above the table says it of all rows


def print_markdown(text: str) -> None:
    """Prints headings, paragraphs and tables to stdout. A table is cut by its first figures (visual tokens, T) into
    groups; one still too wide comes in several, each with the columns that say what a row is.
    """
    console = Console()
    for block in text.strip().split("\n\n"):
        if block.startswith("|"):
            for title, head, rows, keys in groups(*read(block)):
                for table in parts(title, head, rows, keys, console):
                    console.print(table)
        else:
            line = ABOUT_INTERVALS.sub("", " ".join(block.lstrip("# ").split()))
            console.print(line, style="bold" if block.startswith("#") else None, markup=False, highlight=False)


def read(block: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a Markdown table."""
    lines = [line for line in block.splitlines() if not set(line) <= set("|-: ")]
    head, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return head, rows


Group = tuple[str, list[str], list[list[str]], int]


def groups(head: list[str], rows: list[list[str]]) -> Iterator[Group]:
    """(title, head, rows, columns that say what a row is), where rows share their first figures and are three or more;
    else the table as it is.
    """
    keys = next((at for at in range(1, len(head)) if any(INTERVAL.search(row[at]) for row in rows)), 1)
    keys = max(keys, next((at + 1 for at, name in enumerate(head) if name == "tree"), 0))
    shared = next((at for at in range(keys) if not all(FIGURE.match(row[at]) for row in rows)), 0)
    values = [tuple(row[:shared]) for row in rows]
    if not shared or len(rows) < 3 * len(set(values)):
        yield "", head, rows, keys
        return
    for value, some in itertools.groupby(rows, lambda row: row[:shared]):
        title = ", ".join(f"{name} = {x}" for name, x in zip(head, value, strict=False))
        yield title, head[shared:], [row[shared:] for row in some], keys - shared


def parts(title: str, head: list[str], rows: list[list[str]], keys: int, console: Console) -> Iterator[Table]:
    """The table, or where it is too wide as few as hold all its columns."""
    rest = [at for at in range(keys, len(head)) if head[at] not in SUMMED_UP and any(row[at] for row in rows)]
    while rest:
        for most in range(len(rest), 0, -1):
            table = as_table(title, head, rows, [*range(keys), *rest[:most]])
            if Measurement.get(console, console.options.update(width=1000), table).maximum <= console.width:
                break
        yield table
        rest = rest[most:]


def as_table(title: str, head: list[str], rows: list[list[str]], columns: Sequence[int]) -> Table:
    """A head may break between words, a cell does not, but for prose."""
    table = Table(box=SIMPLE_HEAD, padding=0, title=title, title_justify="left", title_style="bold")
    cells = [[INTERVAL.sub("", row[at]) for at in columns] for row in rows]
    for at, column in zip(columns, zip(*cells, strict=True), strict=True):
        name = head[at].replace("transformers", "trans- formers")
        width = max(map(len, (*column, *name.split())))
        justify: Literal["left", "right"] = "right" if all(map(FIGURE.match, column)) else "left"
        table.add_column("\n".join(textwrap.wrap(name, width)), justify=justify, no_wrap=max(map(len, column)) < PROSE)
    for row in cells:
        table.add_row(*row)
    return table
