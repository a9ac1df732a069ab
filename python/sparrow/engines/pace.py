"""Whether drafting pays at a number of requests: from the steps that were measured while serving."""

from dataclasses import dataclass, field

FORGETS = 0.98  # weight of what was measured before, per step: a few dozen steps count


@dataclass
class Measured:
    """Steps of one length at one number of requests; old ones fade."""

    steps: int = 0
    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        self.steps += 1
        self.seconds, self.tokens = FORGETS * self.seconds + seconds, FORGETS * self.tokens + tokens

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Pace:
    """A table of costs, filled as the engine runs: per power of two of requests, tokens a second with and without.

    Both are tried `trials` steps; then the faster one is taken, and the other one is tried again every `again` steps,
    for `trials` steps: what it costs to be wrong is at most trials / again of the steps.

    Attributes:
        most: drafts a step where drafting pays.
    """

    most: int
    trials: int = 16
    again: int = 1024
    table: dict[int, dict[int, Measured]] = field(default_factory=dict)

    def _of(self, requests: int) -> dict[int, Measured]:
        return self.table.setdefault((requests - 1).bit_length(), {self.most: Measured(), 0: Measured()})

    def observe(self, requests: int, length: int, seconds: float, tokens: int) -> None:
        """A step that verified `length` drafts of each request, drafted before it, and gave `tokens` in all."""
        if length in (rows := self._of(requests)):
            rows[length].add(seconds, tokens)

    def choose(self, requests: int) -> int:
        """Drafts of the next step: the most, or none."""
        rows = self._of(requests)
        for length, one in rows.items():
            if one.steps < self.trials:
                return length
        faster = max(rows, key=lambda length: rows[length].speed)
        slower = self.most - faster
        turn = sum(one.steps for one in rows.values()) % self.again
        return slower if turn < self.trials else faster
