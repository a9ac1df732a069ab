"""Clips: a scene rendered at a format, the prompt and the answer that belong to it, and mp4 files."""

import pathlib
import random
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from sparrow.files import replacing
from sparrow.miniature.world.language import converse
from sparrow.miniature.world.render import render
from sparrow.miniature.world.scene import Scene, sample_scene

TOKEN_SIDE = 16  # pixels of a frame that make one visual token: patch 8, merged 2 x 2
TOKEN_FRAMES = 2


@dataclass(frozen=True)
class Format:
    """Frames and their side in pixels."""

    frames: int
    side: int


# visual length -> the formats that have it
FORMATS: dict[int, tuple[Format, ...]] = {
    64: (Format(8, 64),),
    128: (Format(16, 64),),
    256: (Format(32, 64), Format(8, 128)),
    512: (Format(64, 64), Format(16, 128)),
    1024: (Format(128, 64), Format(32, 128)),
    2048: (Format(256, 64), Format(64, 128)),
    4096: (Format(512, 64), Format(128, 128)),
    8192: (Format(256, 128),),
    16384: (Format(512, 128),),
    24576: (Format(768, 128),),
}


@dataclass(frozen=True)
class Clip:
    """A rendered scene with a question about it.

    Attributes:
        scene: what happens in it.
        frames: uint8 [T, H, W, 3]; fps: frames per second, T = fps * seconds.
        kind: the kind of question ("describe", "list", or the attribute it asks for).
        prompt, answer: text.
    """

    scene: Scene
    frames: np.ndarray
    fps: float
    kind: str
    prompt: str
    answer: str


def visual_tokens(form: Format) -> int:
    """Visual tokens the miniature's target makes of a clip."""
    return -(-form.frames // TOKEN_FRAMES) * (form.side // TOKEN_SIDE) ** 2


def sample(
    seed: int, form: Format, *, split: str = "test", kind: str | None = "describe", num_shapes: int | None = None
) -> Clip:
    """The clip with this number.

    Args:
        seed: its number within the split.
        form: frames and size; the scene of a number is the same in every format.
        split: "train", "dev" or "test": separate streams of scenes.
        kind: kind of question, see language.KINDS_OF_QUESTION; None = drawn.
        num_shapes: see sample_scene.

    Raises:
        ValueError: an unknown split or kind.
    """
    if split not in ("train", "dev", "test"):
        raise ValueError(f"split must be train, dev or test, got {split!r}")
    rng = random.Random(f"{split} {seed}")
    scene = sample_scene(rng, num_shapes)
    kind, prompt, answer = converse(scene, rng, kind)
    frames = render(scene, form.frames, form.side, seed=seed)
    return Clip(scene, frames, form.frames / scene.seconds, kind, prompt, answer)


def write_video(path: str | pathlib.Path, frames: np.ndarray, fps: float) -> None:
    """Writes an H.264 mp4 (4:2:0, nearly lossless); one thread, so that equal frames give equal bytes.

    Args:
        path: the file.
        frames: uint8 [T, H, W, 3], even height and width.
        fps: frames per second.
    """
    if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"frames must be uint8 [T, even, even, 3], got {frames.dtype} {frames.shape}")
    import av  # here alone: clips are made, and measured, where there is none

    rate = Fraction(fps).limit_denominator(1000)
    with replacing(path) as new, av.open(str(new), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
