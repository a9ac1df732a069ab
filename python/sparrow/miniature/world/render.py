"""Scenes to pictures."""

import numpy as np

from sparrow.miniature.world.scene import COLOURS, GROUNDS, SIZES, Scene, Shape


def render(scene: Scene, frames: int, side: int, seed: int = 0, owner: bool = False):
    """Draws a scene.

    Args:
        scene: what happens.
        frames: number of pictures, evenly over the clip: picture i shows second (i + 0.5) * seconds / frames.
        side: height and width in pixels.
        seed: of brightness and grain.
        owner: also return which shape covers each pixel.

    Returns:
        uint8 [frames, side, side, 3]; with `owner` also uint8 [frames, side, side]: 0 = ground, i + 1 = shape i.
    """
    rng = np.random.default_rng(seed)
    times = (np.arange(frames) + 0.5) * scene.seconds / frames
    picture = np.empty((frames, side, side, 3), np.float32)
    picture[:] = GROUNDS[scene.ground]
    covered = np.zeros((frames, side, side), np.uint8)
    for number, shape in enumerate(scene.shapes, 1):
        _draw(picture, covered, number, shape, times, scene.seconds, side)
    picture += rng.uniform(-6, 6)
    grain = rng.standard_normal((side, side), dtype=np.float32) * rng.uniform(0, 5)
    for i in range(frames):  # one field of grain, moved about
        picture[i] += np.roll(grain, tuple(rng.integers(0, side, 2)), (0, 1))[..., None]
    out = picture.clip(0, 255).astype(np.uint8)
    return (out, covered) if owner else out


def _draw(picture, covered, number: int, shape: Shape, times, seconds: int, side: int) -> None:
    there = (times >= shape.enters) & (times < (shape.leaves if shape.leaves is not None else np.inf))
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    radius = SIZES[shape.size]
    for i in np.flatnonzero(there):
        x, y = shape.centre(float(times[i]), seconds)
        rows = slice(max(0, int((y - radius) * side) - 1), int((y + radius) * side) + 2)
        columns = slice(max(0, int((x - radius) * side) - 1), int((x + radius) * side) + 2)
        dx, dy = (axis[None, columns] - x) / radius, (axis[rows, None] - y) / radius
        # distance to the outline in pixels, inside positive: half a pixel of smooth edge
        cover = np.clip(_inside(shape.kind, dx, dy) * radius * side + 0.5, 0, 1)[..., None]
        turned = shape.turns is not None and times[i] >= shape.turns[0]
        colour = np.array(COLOURS[shape.last_colour() if turned else shape.colour], np.float32)
        area = picture[i, rows, columns]
        area += cover * (colour - area)
        covered[i, rows, columns][cover[..., 0] >= 0.5] = number


def _inside(kind: str, dx, dy):
    """About the distance to the outline in units of the radius, positive inside; dx, dy in the same units."""
    ax, ay = np.abs(dx), np.abs(dy)
    far = np.maximum(ax, ay)
    if kind == "circle":
        return 1 - np.hypot(dx, dy)
    if kind == "ring":
        return 0.27 - np.abs(np.hypot(dx, dy) - 0.73)
    if kind == "square":
        return 0.88 - far
    if kind == "diamond":
        return (1 - ax - ay) * 0.7
    if kind == "cross":
        return np.maximum(np.minimum(1 - ay, 0.34 - ax), np.minimum(1 - ax, 0.34 - ay)) + 0 * far
    return np.minimum((dy + 1 - 1.95 * ax) * 0.45, 0.9 - dy)  # triangle, point up
