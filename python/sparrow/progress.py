"""How far a long job is: a bar on a terminal, elsewhere a plain line every few seconds, with the time that is left."""

import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

console = Console(stderr=True)  # what is printed here while a bar is shown goes above it
SECONDS = 8.0  # between two lines
T = TypeVar("T")


class Count(ProgressColumn):
    """12/96 frames; nothing where the number of steps is not known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f} {task.fields['unit']}".strip() if task.total else "")


class Progress:
    """A job, shown on stderr inside `with`. Without a terminal nothing is shown of a job shorter than SECONDS.

    Args:
        text: what is done.
        total: steps; None = not known yet, or none to count.
        unit: what a step is, "frames".
        quiet: shows nothing.
    """

    def __init__(self, text: str, total: int | None = None, unit: str = "", quiet: bool = False):
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(20), Count(), TimeRemainingColumn(), console=console,
            transient=True, disable=quiet or not console.is_interactive, speed_estimate_period=3600,
        )  # fmt: skip
        self.bar.add_task(text, total=total, unit=unit)
        (self.task,) = self.bar.tasks
        self.lines = not quiet and not console.is_interactive
        self.ended = threading.Event()

    def __enter__(self) -> "Progress":
        self.bar.start()
        if self.lines:
            threading.Thread(target=self._print_lines, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        if not self.bar.disable:
            self.bar.stop()

    def update(self, completed: int | None = None, total: int | None = None, text: str | None = None) -> None:
        """Sets what is given: steps done, steps in all, what is done now."""
        self.bar.update(self.task.id, completed=completed, total=total, description=text)

    def advance(self, steps: int = 1) -> None:
        """So many steps more are done."""
        self.bar.advance(self.task.id, steps)

    def line(self) -> str:
        """Where the job is: "reading the video: 12/96 frames, 8 s so far, about 56 s left"."""
        task, elapsed = self.task, self.task.elapsed or 0.0
        count, left = Count().render(task).plain, None
        if task.total and task.completed:
            left = elapsed * (task.total - task.completed) / task.completed
        parts = [count, f"{duration(elapsed)} so far", "" if left is None else f"about {duration(left)} left"]
        return f"{task.description}: {', '.join(filter(None, parts))}"

    def _print_lines(self) -> None:
        while not self.ended.wait(SECONDS):
            print(self.line(), file=console.file, flush=True)


def track(items: Sequence[T], text: str, unit: str = "", quiet: bool = False) -> Iterator[T]:
    """The items one by one; how many are done is shown while they are used."""
    with Progress(text, len(items), unit, quiet) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
