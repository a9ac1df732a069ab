"""Whether drafting pays at a number of requests: from the steps that were measured while serving."""

from dataclasses import dataclass, field

FORGETS = 0.98  # weight of what was measured before, per step: a few dozen steps count


@dataclass
class Measured:
    """Steps of one length at one number of requests; old ones fade."""

    steps: int = 0
    recent: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        self.steps += 1
        self.recent = FORGETS * self.recent + 1
        self.seconds, self.tokens = FORGETS * self.seconds + seconds, FORGETS * self.tokens + tokens

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def step(self) -> float:
        """Seconds of one."""
        return self.seconds / self.recent


@dataclass
class Row:
    """What is known at one number of requests: steps by drafts, and the seconds that trying the slower way may take."""

    lengths: dict[int, Measured]
    saved: float = 0.0

    def faster(self) -> int:
        return max(self.lengths, key=lambda length: self.lengths[length].speed)


@dataclass
class Pace:
    """A table of costs, filled as the engine runs: per power of two of requests, tokens a second with and without.

    Both are tried `trials` steps, with drafts first; then the faster one is taken. The other one is tried again, a step
    at a time, as soon as `share` of the faster one's time has paid for it: at most that share of the time is spent on
    what is slower, but for the trials.

    Attributes:
        most: drafts a step where drafting pays.
    """

    most: int
    trials: int = 16
    share: float = 0.02
    table: dict[int, Row] = field(default_factory=dict)

    def _of(self, requests: int) -> Row:
        lengths = {self.most: Measured(), 0: Measured()}
        return self.table.setdefault((requests - 1).bit_length(), Row(lengths))

    def _trial(self, row: Row) -> int | None:
        """What is still to be tried at first; None = nothing."""
        return next((length for length, one in row.lengths.items() if one.steps < self.trials), None)

    def observe(self, requests: int, length: int, seconds: float, tokens: int) -> None:
        """A step that verified `length` drafts of each request, drafted before it, and gave `tokens` in all."""
        row = self._of(requests)
        if length not in row.lengths:
            return
        if self._trial(row) is None:
            row.saved += self.share * seconds if length == row.faster() else -seconds
        row.lengths[length].add(seconds, tokens)

    def choose(self, requests: int) -> int:
        """Drafts of the next step: the most, or none."""
        row = self._of(requests)
        if (length := self._trial(row)) is not None:
            return length
        faster = row.faster()
        slower = self.most - faster
        return slower if row.saved >= row.lengths[slower].step else faster
