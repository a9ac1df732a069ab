"""Held-out clips of the synthetic world as model inputs."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparrow.miniature.world import FORMATS, Clip, Format, sample
from sparrow.video import VideoInfo, prepare
from sparrow.video.settings import PatchSettings


@dataclass(frozen=True)
class Question:
    """One clip and what the model is asked about it.

    Attributes:
        number: of the clip within its split; length: visual tokens.
        clip: frames, prompt and the scene's own answer.
        inputs: what model.generate takes, batch 1.
    """

    number: int
    length: int
    clip: Clip
    inputs: dict[str, Tensor]


def form_of(length: int, number: int) -> Format:
    """The format of a clip: all formats of a visual length take turns.

    Raises:
        ValueError: no format has this visual length.
    """
    if length not in FORMATS:
        raise ValueError(f"a visual length must be one of {', '.join(map(str, FORMATS))}, got {length}")
    return FORMATS[length][number % len(FORMATS[length])]


def question(
    settings: PatchSettings, tokenizer: Any, length: int, number: int, *, split: str, kind: str = "describe"
) -> Question:
    """The question with this number; the scene of a number is the same at every visual length.

    Args:
        settings: of the target's frames; the formats' visual lengths hold for the miniature's.
        tokenizer: the target's.
        length: visual tokens, a key of FORMATS.
        number, split, kind: see synthetic.sample.

    Raises:
        ValueError: an unknown length, split or kind, or settings that give another number of visual tokens.
    """
    clip = sample(number, form_of(length, number), split=split, kind=kind)
    t, h, w = clip.frames.shape[:3]
    info = VideoInfo(t, clip.fps, tuple(range(t)), h, w)
    inputs = prepare(settings, tokenizer, clip.prompt, [(clip.frames, info)])
    grid = inputs["video_grid_thw"]
    made = int(grid.prod()) // settings.merge_size**2
    if made != length:
        raise ValueError(f"the target's settings make {made} visual tokens of a clip that should have {length}")
    return Question(number, length, clip, inputs)


def sampling(temperature: float, max_new_tokens: int) -> dict[str, Any]:
    """generate()'s options; top-k and top-p off.

    Raises:
        ValueError: a temperature that is negative or not finite.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"a temperature must be at least 0 and finite, got {temperature}")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    return options | ({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {})
