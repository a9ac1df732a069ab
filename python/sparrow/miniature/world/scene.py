"""What happens in a clip, in seconds and fractions of the frame: any frame count and resolution can show it."""

import random
from dataclasses import dataclass

COLOURS = {
    "red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (240, 220, 40),
    "purple": (150, 50, 200), "white": (245, 245, 245), "orange": (245, 140, 30), "cyan": (60, 220, 230),
}  # fmt: skip
KINDS = ("circle", "square", "triangle", "cross", "ring", "diamond")
SIZES = {"small": 0.078, "large": 0.14}  # half of a shape's side
GROUNDS = {
    "black": (8, 8, 8), "gray": (62, 62, 62), "dark blue": (14, 18, 64), "dark red": (64, 14, 18),
    "dark green": (10, 52, 22),
}  # fmt: skip
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 0.28, "quickly": 0.58}  # share of the frame's side travelled
CELLS = tuple((row, column) for row in range(3) for column in range(3))
MAX_SHAPES = 4


@dataclass(frozen=True)
class Shape:
    """One thing on the screen.

    Attributes:
        colour, kind, size: keys of COLOURS, KINDS, SIZES.
        cell: (row, column) of the 3 x 3 grid where it appears; x, y: that place as shares of the frame.
        direction: a key of DIRECTIONS, or None = it does not move; speed: a key of SPEEDS.
        enters: second at which it appears; leaves: second at which it is gone, or None.
        turns: (second, colour) of a change of colour, or None.
    """

    colour: str
    kind: str
    size: str
    cell: tuple[int, int]
    x: float
    y: float
    direction: str | None
    speed: str
    enters: int
    leaves: int | None
    turns: tuple[int, str] | None

    def centre(self, second: float, seconds: int) -> tuple[float, float]:
        """Where it is, as shares of the frame; it travels evenly until the clip ends, or to the rim."""
        if self.direction is None:
            return self.x, self.y
        dx, dy = DIRECTIONS[self.direction]
        share = SPEEDS[self.speed] * max(0.0, second - self.enters) / max(1, seconds - self.enters)
        rim = 0.75 * SIZES[self.size]
        return _within(self.x + dx * share, rim), _within(self.y + dy * share, rim)

    def last_cell(self, seconds: int) -> tuple[int, int]:
        """The cell it is in when the clip ends."""
        x, y = self.centre(seconds, seconds)
        return min(2, int(3 * y)), min(2, int(3 * x))

    def last_colour(self) -> str:
        return self.turns[1] if self.turns else self.colour


@dataclass(frozen=True)
class Scene:
    """A clip: `seconds` long, on a ground of GROUNDS, shapes in the order of their entry."""

    seconds: int
    ground: str
    shapes: tuple[Shape, ...]


def sample_scene(rng: random.Random, num_shapes: int | None = None) -> Scene:
    """Draws a scene; every colour and kind pair in it is there once.

    Args:
        rng: the only source of chance.
        num_shapes: 1..MAX_SHAPES; None = drawn.

    Raises:
        ValueError: num_shapes out of range.
    """
    if num_shapes is not None and not 1 <= num_shapes <= MAX_SHAPES:
        raise ValueError(f"num_shapes must lie in [1, {MAX_SHAPES}], got {num_shapes}")
    count = num_shapes or rng.choice((1, 2, 3, 4))
    seconds = rng.randint(5, 9)
    enters = [0, *sorted(rng.sample(range(1, seconds - 1), count - 1))]
    cells = rng.sample(CELLS, count)
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        look = rng.choice(list(COLOURS)), rng.choice(KINDS)
        if look not in looks:
            looks.append(look)
    return Scene(
        seconds, rng.choice(list(GROUNDS)), tuple(map(_shape, [rng] * count, looks, cells, enters, [seconds] * count))
    )


def _shape(rng: random.Random, look: tuple[str, str], cell: tuple[int, int], enters: int, seconds: int) -> Shape:
    row, column = cell
    # a shape starts towards the side it has room on
    open_ways = [
        name
        for name, (dx, dy) in DIRECTIONS.items()
        if not (dx < 0 and column == 0) and not (dx > 0 and column == 2) and not (dy < 0 and row == 0)
        and not (dy > 0 and row == 2)
    ]  # fmt: skip
    direction = None if rng.random() < 0.25 else rng.choice(open_ways)
    leaves = rng.randint(enters + 2, seconds - 1) if rng.random() < 0.25 and enters + 2 <= seconds - 1 else None
    end = leaves or seconds
    turns = None
    if rng.random() < 0.3 and enters + 1 <= end - 1:
        turns = rng.randint(enters + 1, end - 1), rng.choice([c for c in COLOURS if c != look[0]])
    return Shape(
        *look, rng.choice(list(SIZES)), cell, (column + 0.5) / 3 + rng.uniform(-0.04, 0.04),
        (row + 0.5) / 3 + rng.uniform(-0.04, 0.04), direction, rng.choice(list(SPEEDS)), enters, leaves, turns,
    )  # fmt: skip


def _within(value: float, rim: float) -> float:
    return min(1 - rim, max(rim, value))
