"""What an evaluation measures, as plain data."""

from dataclasses import dataclass

from sparrow.evaluation.questions import form_of, sampling
from sparrow.evaluation.systems import CLOCKS, PLAIN, TRANSFORMERS, System

BASELINES = (TRANSFORMERS, PLAIN)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        table: its name.
        systems: beside the two baselines, which are run where there are times.
        points: (visual length, temperature) pairs; temperature 0 = greedy.
        split: "test", or "dev" for choosing.
        clips: numbers 0 .. clips - 1 of the split; tau of drafters is over all of them, by replay.
        live: the first so many are decoded live by every system: losslessness, and the replay checked.
        live_others: the same for systems that cannot be replayed (SpecVLM, prompt lookup): their tau is over these;
            None = all clips.
        timed: the first so many of the live ones are run `runs` times; a time is the median. 0 = no times.
        seed: of the sampling noise; clip i draws with seed + i.
        max_new_tokens: per clip.
        clock: of the times, "wall" or "cpu".
    """

    table: str
    systems: tuple[System, ...]
    points: tuple[tuple[int, float], ...]
    split: str = "test"
    clips: int = 100
    live: int = 5
    live_others: int | None = None
    timed: int = 0
    runs: int = 3
    seed: int = 0
    max_new_tokens: int = 256
    clock: str = "wall"

    def __post_init__(self):
        if self.live_others is None:
            object.__setattr__(self, "live_others", self.clips)
        for name, least in (("clips", 1), ("live", 1), ("timed", 0), ("runs", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.timed <= self.live <= self.others <= self.clips:
            raise ValueError(
                "timed <= live <= live_others <= clips must hold, "
                f"got {self.timed}, {self.live}, {self.others}, {self.clips}"
            )
        if self.clock not in CLOCKS:
            raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {self.clock!r}")
        if not self.systems or not self.points:
            raise ValueError(f"table {self.table}: at least one system and one (length, temperature) are needed")
        for length, temperature in self.points:
            form_of(length, 0), sampling(temperature, self.max_new_tokens)  # raise
        names = [s.name for s in (*BASELINES, *self.systems)]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"systems need different names, got {sorted(twice)[0]!r} twice")

    @property
    def others(self) -> int:
        """live_others as a number."""
        assert self.live_others is not None
        return self.live_others

    @property
    def all_systems(self) -> tuple[System, ...]:
        """Those that get cells: a table without times has none of the baselines."""
        return (*BASELINES, *self.systems) if self.timed else self.systems

    def run_at(self, temperature: float) -> tuple[System, ...]:
        """Those that are run: also the one whose tokens the others must give."""
        return self.all_systems if self.timed else (reference(temperature), *self.systems)

    def live_clips(self, system: System) -> int:
        """How many clips the system decodes live."""
        return self.others if system.kind in ("lookup", "specvlm") else self.live


def reference(temperature: float) -> System:
    """Whose tokens a system of ours must give: transformers' greedy ones, or our plain sampling with the seed."""
    return TRANSFORMERS if temperature == 0 else PLAIN
