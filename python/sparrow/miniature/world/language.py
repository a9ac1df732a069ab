"""What is said about a scene: long descriptions, lists, questions with answers.

A sentence is drawn from several; which one depends on what the shape does and on chance. Content words (colours, kinds,
places, seconds, counts) can only be known from the video.
"""

import random
from collections.abc import Iterator

from sparrow.miniature.world.scene import MAX_SHAPES, Scene, Shape, sample_scene

COUNTS = ("no", "one", "two", "three", "four")
ORDINALS = ("first", "second", "third", "fourth")
BIG = {"small": ("small", "tiny"), "large": ("large", "big")}
PLACES = {
    (0, 0): ("at the upper left", "in the top left corner"), (0, 1): ("at the top", "near the upper edge"),
    (0, 2): ("at the upper right", "in the top right corner"), (1, 0): ("on the left", "near the left edge"),
    (1, 1): ("in the center", "in the middle"), (1, 2): ("on the right", "near the right edge"),
    (2, 0): ("at the lower left", "in the bottom left corner"), (2, 1): ("at the bottom", "near the lower edge"),
    (2, 2): ("at the lower right", "in the bottom right corner"),
}  # fmt: skip
WAYS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
VERBS = {"slowly": ("drifts", "glides", "creeps"), "quickly": ("races", "shoots", "rushes")}

DESCRIBE = (
    "Describe the video in detail.", "What happens in this video?", "Tell me everything you see.",
    "Give a detailed account of the clip.",
)  # fmt: skip
LIST = ("List the shapes in order.", "Make a list of all shapes with time and place.")


def caption(scene: Scene, rng: random.Random) -> str:
    """A detailed description, 50 to 250 tokens."""
    parts = [_opening(scene, rng)]
    told: str | None = None
    for number, shape in enumerate(scene.shapes):
        sentence, told = _entry(number, shape, scene, told, rng)
        parts += [sentence, *_events(shape, rng)]
    return " ".join([*parts, *_closing(scene, rng)])


def converse(scene: Scene, rng: random.Random, kind: str | None = None) -> tuple[str, str, str]:
    """(kind, prompt, answer); kind None = drawn, most often "describe".

    Raises:
        ValueError: an unknown kind.
    """
    kind = kind or ("describe" if (u := rng.random()) < 0.6 else "list" if u < 0.7 else rng.choice(list(QUESTIONS)))
    if kind == "describe":
        return kind, rng.choice(DESCRIBE), caption(scene, rng)
    if kind == "list":
        return kind, rng.choice(LIST), _list(scene)
    if kind not in QUESTIONS:
        raise ValueError(f"kind must be describe, list or one of {', '.join(QUESTIONS)}, got {kind!r}")
    return kind, *QUESTIONS[kind](scene, rng)


def vocabulary_texts(count: int = 2000) -> Iterator[str]:
    """Prompts and answers to train a tokenizer on."""
    rng = random.Random("vocabulary")
    for _ in range(count):
        _, prompt, answer = converse(sample_scene(rng), rng)
        yield prompt
        yield answer


# ---- descriptions ----


def _opening(scene: Scene, rng: random.Random) -> str:
    count, ground = _plural(len(scene.shapes)), scene.ground
    return rng.choice((
        f"The clip lasts {scene.seconds} seconds and shows {count} on a {ground} background.",
        f"On a {ground} background, {count} can be seen within {scene.seconds} seconds.",
        f"This is a video of {scene.seconds} seconds with {count}; the background is {ground}.",
    ))  # fmt: skip


def _entry(number: int, shape: Shape, scene: Scene, told: str | None, rng: random.Random) -> tuple[str, str]:
    """The sentence in which a shape enters, and the form it took: a form is not used twice in a row."""
    look, place, second = _look(shape, rng), rng.choice(PLACES[shape.cell]), shape.enters
    motion = _motion(shape, rng)
    forms = {
        "there": f"{_upper(place)} there is a {look} from second {second} on, and it {motion}.",
        "enters": f"A {look} enters {place} at second {second} and {motion}.",
        "see": f"{_lead(number, scene)} we see a {look} {place}, which appears at second {second} and {motion}.",
        "second": f"At second {second}, a {look} shows up {place}; it {motion}.",
    }
    rule = "there" if shape.direction is None else {"left": "enters", "right": "enters"}.get(shape.direction, "second")
    rule = "see" if shape.speed == "quickly" and rule != "there" and number else rule
    if rule == told or rng.random() < 0.25:
        rule = rng.choice([form for form in forms if form != told])
    return forms[rule], rule


def _events(shape: Shape, rng: random.Random) -> list[str]:
    said = []
    if shape.turns:
        second, colour = shape.turns
        said.append(rng.choice((f"It turns {colour} at second {second}.", f"At second {second} it becomes {colour}.")))
    if shape.leaves:
        said.append(
            rng.choice((f"It is gone after second {shape.leaves}.", f"At second {shape.leaves} it disappears."))
        )
    return said


def _closing(scene: Scene, rng: random.Random) -> list[str]:
    """Where everything ends, and what can be counted."""
    left = [s for s in scene.shapes if s.leaves is None]
    said = []
    for number, shape in enumerate(left):
        opening = rng.choice(("At the end", "In the last frame")) + ", " if number == 0 else ""
        place = PLACES[shape.last_cell(scene.seconds)][0]
        sentence = f"{opening}the {shape.last_colour()} {shape.kind} is {place}."
        said.append(_upper(sentence))
    moving, large = sum(s.direction is not None for s in scene.shapes), sum(s.size == "large" for s in scene.shapes)
    said.append(
        rng.choice(
            (
                f"In total, {COUNTS[moving]} of the {_plural(len(scene.shapes))} {_is(moving)} moving and"
                f" {COUNTS[large]} {_is(large)} large.",
                f"There {_is(large)} {COUNTS[large]} large and {COUNTS[moving]} moving among the"
                f" {_plural(len(scene.shapes))}.",
            )
        )
    )
    if len(scene.shapes) > 1 and rng.random() < 0.5:
        first, second = rng.sample(scene.shapes, 2)
        order = "before" if first.enters < second.enters else "after"
        said.append(f"The {first.colour} {first.kind} appears {order} the {second.colour} {second.kind}.")
    return said


def _list(scene: Scene) -> str:
    lines = [
        f"{i}. second {s.enters}: {s.size} {s.colour} {s.kind} {PLACES[s.cell][0]}, {_short_motion(s)}"
        + (f", {s.turns[1]} from second {s.turns[0]}" if s.turns else "")
        + (f", gone at second {s.leaves}" if s.leaves else "")
        for i, s in enumerate(scene.shapes, 1)
    ]
    return "\n".join(lines)


# ---- questions; the last word or words of an answer are its point ----


def _count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "How many shapes are there?", f"The number of shapes is {COUNTS[len(scene.shapes)]}."


def _ground(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "What is the background like?", f"The background is {scene.ground}."


def _colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    i = rng.randrange(len(scene.shapes))
    return f"Which color does the {ORDINALS[i]} shape have when it appears?", (
        f"The color of the {ORDINALS[i]} shape is {scene.shapes[i].colour}."
    )


def _kind(scene: Scene, rng: random.Random) -> tuple[str, str]:
    i = rng.randrange(len(scene.shapes))
    return f"What kind of shape is the {ORDINALS[i]} one?", f"The {ORDINALS[i]} shape is a {scene.shapes[i].kind}."


def _size(scene: Scene, rng: random.Random) -> tuple[str, str]:
    i = rng.randrange(len(scene.shapes))
    return f"How big is the {ORDINALS[i]} shape?", f"The {ORDINALS[i]} shape is {scene.shapes[i].size}."


def _place(scene: Scene, rng: random.Random) -> tuple[str, str]:
    i = rng.randrange(len(scene.shapes))
    return f"Where does the {ORDINALS[i]} shape appear?", (
        f"The {ORDINALS[i]} shape appears {PLACES[scene.shapes[i].cell][0]}."
    )


def _way(scene: Scene, rng: random.Random) -> tuple[str, str]:
    i = rng.randrange(len(scene.shapes))
    return f"How does the {ORDINALS[i]} shape move?", f"The {ORDINALS[i]} shape {_short_motion(scene.shapes[i])}."


def _when(scene: Scene, rng: random.Random) -> tuple[str, str]:
    i = rng.randrange(len(scene.shapes))
    return f"When does the {ORDINALS[i]} shape appear?", (
        f"The {ORDINALS[i]} shape appears at second {scene.shapes[i].enters}."
    )


QUESTIONS = {
    "count": _count, "ground": _ground, "colour": _colour, "kind": _kind, "size": _size, "place": _place,
    "motion": _way, "second": _when,
}  # fmt: skip
KINDS_OF_QUESTION = ("describe", "list", *QUESTIONS)


# ---- words ----


def _look(shape: Shape, rng: random.Random) -> str:
    return f"{rng.choice(BIG[shape.size])} {shape.colour} {shape.kind}"


def _motion(shape: Shape, rng: random.Random) -> str:
    if shape.direction is None:
        return rng.choice(("does not move", "stays where it is", "rests there"))
    if rng.random() < 0.4:
        return f"moves {WAYS[shape.direction]} {shape.speed}"
    return f"{rng.choice(VERBS[shape.speed])} {WAYS[shape.direction]}"


def _short_motion(shape: Shape) -> str:
    return f"moves {shape.speed} {WAYS[shape.direction]}" if shape.direction else "stays still"


def _lead(number: int, scene: Scene) -> str:
    if number == 0:
        return "First,"
    return "Finally," if number == len(scene.shapes) - 1 else "Then"


def _plural(count: int) -> str:
    return f"{COUNTS[count]} shape" + ("" if count == 1 else "s")


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


assert len(COUNTS) == MAX_SHAPES + 1 and len(ORDINALS) == MAX_SHAPES
