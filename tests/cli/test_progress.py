"""How far a job is: a bar on a terminal; elsewhere plain lines with the time that is left, also amid a long step."""

import io
import re
import time

import pytest
from rich.console import Console

from sparrow import progress
from sparrow.progress import Progress, duration, track


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.05)


def test_lines_come_within_ten_seconds():
    assert progress.SECONDS <= 10


def test_lines_without_a_terminal(often, capsys):
    for _ in track(range(4), "counting", "sheep"):
        time.sleep(0.12)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 6  # several amid each step
    assert lines[0].startswith("counting: 0/4 sheep, 0 s so far")  # nothing is done: no time left is known
    assert re.fullmatch(r"counting: 3/4 sheep, \d s so far, about \d s left", lines[-1])
    assert [int(line.split()[1].split("/")[0]) for line in lines] == sorted(int(line.split()[1][0]) for line in lines)


def test_a_job_without_a_count(often, capsys):
    with Progress("loading") as job:
        time.sleep(0.12)
        job.update(text="still loading")
        time.sleep(0.12)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "loading: 0 s so far" and lines[-1] == "still loading: 0 s so far"


def test_the_time_left():
    with Progress("reading", 10, "frames", quiet=True) as job:
        job.update(completed=2)
        job.task._get_time = lambda: job.task.start_time + 90
        assert job.line() == "reading: 2/10 frames, 1 min 30 s so far, about 6 min 0 s left"
        job.update(completed=3, total=12)
        assert job.line().endswith("about 4 min 30 s left")
    assert [duration(x) for x in (0.4, 59.4, 59.6, 3599, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 5 min",
    ]


def test_short_and_quiet_jobs_say_nothing(often, capsys):
    for _ in track(range(3), "short"):
        pass
    with Progress("quiet", 3, quiet=True):
        time.sleep(0.12)
    assert capsys.readouterr() == ("", "")


def test_no_lines_after_a_failure(often, capsys):
    with pytest.raises(ValueError, match="broken"), Progress("failing", 3):
        raise ValueError("broken")
    time.sleep(0.12)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(often, monkeypatch, capsys):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress, "console", terminal)
    with Progress("reading", 4, "frames") as job:
        job.advance(3)
        job.bar.refresh()
        time.sleep(0.12)
    drawn = terminal.file.getvalue()
    assert "reading" in drawn and "3/4 frames" in drawn and "\x1b[" in drawn and "so far" not in drawn
    assert capsys.readouterr().err == ""
