"""What a generation did: accepted lengths, where the time went, memory."""

import math
import resource
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

import torch

STAGES = ("prefill", "draft", "verify", "sample", "commit")


@dataclass
class DecodeStats:
    """Counts and times of one generation.

    tau counts the tokens emitted per round, bonus included and the prefill's token excluded; the last round counts by
    what it emitted. Times are wall seconds of the host (on CUDA: of the stream, by events).

    Attributes:
        sequences: how many were decoded together. A round of each one that goes on is a round by itself in all that
            follows, so that tau is the mean over rounds and sequences, and tokens per second are all sequences'.
        emitted: tokens emitted in each round.
        accepted: drafted tokens accepted in each round (before any stop).
        prompt_tokens, visual_tokens: length of the prompts, padding included, and how many of it are visual.
        reused_tokens: tokens of the prompt whose rows an earlier run had left (sessions, prefix stores).
        new_tokens: tokens returned behind the prompts.
        seconds: per stage; rounds that were captured and replayed are one more, "replay".
        total_seconds: the whole call.
        peak_memory_bytes: CUDA: peak allocated; CPU: the process' peak resident set.
        tree: "total-depth-width", "auto", or "none" for plain decoding.
        trees: with "auto", rounds by tree, "none" where nothing was drafted.
    """

    tree: str = "none"
    depth: int = 0
    sequences: int = 1
    prompt_tokens: int = 0
    visual_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    trees: dict[str, int] = field(default_factory=dict)
    emitted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    total_seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def rounds(self) -> int:
        return len(self.emitted)

    @property
    def tau(self) -> float:
        """Mean tokens emitted per round; NaN where no round ran."""
        return sum(self.emitted) / self.rounds if self.rounds else float("nan")

    @property
    def accepted_histogram(self) -> list[int]:
        """Rounds by the number of drafted tokens accepted, 0 to depth."""
        return [self.accepted.count(n) for n in range(self.depth + 1)]

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Of the rounds whose path reached depth d, the share that went on to d + 1; NaN where none reached d."""
        reached = [sum(n >= d for n in self.accepted) for d in range(self.depth + 1)]
        return [b / a if a else float("nan") for a, b in pairwise(reached)]

    @property
    def decode_seconds(self) -> float:
        """All stages but prefill."""
        return sum(s for stage, s in self.seconds.items() if stage != "prefill")

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the prefill's, over the time after prefill."""
        return sum(self.emitted) / self.decode_seconds if self.decode_seconds > 0 else float("nan")

    @property
    def tokens_per_second(self) -> float:
        """All new tokens over the whole call."""
        return self.new_tokens / self.total_seconds if self.total_seconds > 0 else float("nan")

    def as_dict(self) -> dict[str, object]:
        """Every field and every derived figure, ready for JSON: None where a figure is not defined."""
        derived = [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        figures = {**self.__dict__, **{name: getattr(self, name) for name in derived}}
        return {name: [*map(_defined, x)] if isinstance(x, list) else _defined(x) for name, x in figures.items()}


def _defined(figure: object) -> object:
    return None if isinstance(figure, float) and math.isnan(figure) else figure


class Clock:
    """Adds wall time per stage. On CUDA by events, read once at the end: no synchronisation while decoding."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._start = time.perf_counter()
        self._host = dict.fromkeys(STAGES, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self._begun = torch.cuda.Event(enable_timing=True)
            self._begun.record()

    def all_so_far(self, name: str) -> None:
        """What went by since the clock was made belongs to stage `name`."""
        if self._cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
            self._events.append((name, self._begun, now))
        else:
            self._add(name, time.perf_counter() - self._start)

    def spent(self, name: str) -> float:
        """Seconds of a stage so far; on CUDA 0, as nobody waits for the events."""
        return self._host.get(name, 0.0)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """What is done within belongs to this stage."""
        return _EventStage(self._events, name) if self._cuda else _HostStage(self._host, name)

    def _add(self, name: str, seconds: float) -> None:
        self._host[name] = self._host.get(name, 0.0) + seconds

    def write(self, stats: DecodeStats) -> None:
        """Fills in times and memory; synchronises once."""
        if self._cuda:
            torch.cuda.synchronize()
            for name, begin, end in self._events:
                self._add(name, begin.elapsed_time(end) / 1e3)
            stats.peak_memory_bytes = torch.cuda.max_memory_allocated()
        else:
            stats.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        stats.seconds = dict(self._host)
        stats.total_seconds = time.perf_counter() - self._start


class _HostStage(AbstractContextManager[None]):
    """Written out: there are six in a round, which may last two milliseconds."""

    def __init__(self, seconds: dict[str, float], name: str):
        self.seconds, self.name, self.begun = seconds, name, time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.begun


class _EventStage(AbstractContextManager[None]):
    def __init__(self, events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]], name: str):
        self.events, self.name, self.begun = events, name, torch.cuda.Event(enable_timing=True)
        self.begun.record()

    def __exit__(self, *_: object) -> None:
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        self.events.append((self.name, self.begun, end))


class NoClock(Clock):
    """Measures nothing."""

    def __init__(self) -> None:
        pass

    def stage(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()
