"""Preprocessing settings per model family: transformers' defaults, or those of a checkpoint folder.

Two kinds of model take video. Patch models (Qwen-VL) keep the aspect ratio, choose a size within a pixel budget and
take flat patches. Frame models (LLaVA, InternVL) take every frame at one fixed size.
"""

import math
from dataclasses import dataclass, fields

from sparrow.video.info import VideoError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """What every family has.

    Attributes:
        family: `model_type` of the model's configuration, a key of FAMILIES.
        image_mean: per colour channel, in units of a rescaled pixel.
        image_std: as image_mean.
        rescale_factor: multiplies a pixel value 0..255.
        num_frames: frames sampled from a file when the caller names neither number nor rate (fewer if it has fewer).
        fps: sampled frames per second in that case; at most one of the two.
        chat_template: Jinja template of the processor; None = the tokenizer's own.
    """

    family: str
    image_mean: Triple = CLIP_MEAN
    image_std: Triple = CLIP_STD
    rescale_factor: float = 1 / 255
    num_frames: int | None = None
    fps: float | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if self.family not in KINDS:
            raise VideoError(f"family must be one of {', '.join(KINDS)}, got {self.family!r}")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 3 or not all(is_finite(v) for v in value):
                raise VideoError(f"{name} must be three finite numbers, got {value!r}")
        if 0 in self.image_std:
            raise VideoError(f"image_std must not contain 0, got {self.image_std}")
        self._require("rescale_factor", is_finite(self.rescale_factor) and self.rescale_factor > 0, "a positive number")
        self._require("num_frames", self.num_frames is None or is_count(self.num_frames), "a positive integer or None")
        self._require("fps", self.fps is None or (is_finite(self.fps) and self.fps > 0), "a positive number or None")
        if self.num_frames is not None and self.fps is not None:
            raise VideoError(f"at most one of num_frames and fps may be set, got {self.num_frames} and {self.fps}")

    def _require(self, name: str, valid: bool, rule: str) -> None:
        if not valid:
            raise VideoError(f"{name} must be {rule}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class PatchSettings(VideoSettings):
    """Patch models (Qwen2-VL, Qwen2.5-VL, Qwen3-VL).

    Attributes:
        patch_size: pixels per patch side.
        merge_size: patches per side that become one token.
        temporal_patch_size: frames per patch.
        min_pixels: lower bound of height * width of a resized frame (Qwen3-VL: of all frames together).
        max_pixels: upper bound of the same.
        min_frames: least number of frames `fps` sampling takes.
        max_frames: largest number of frames `fps` sampling takes.
        cap_pixels_per_frame: bound a long clip's total cost as well.
        max_video_tokens: the bound: tokens per clip (Qwen3-VL: per frame).
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    min_frames: int = 4
    max_frames: int = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 128000

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(PatchSettings):
            if field.type is int:
                self._require(field.name, is_count(getattr(self, field.name)), "a positive integer")
        self._require("cap_pixels_per_frame", isinstance(self.cap_pixels_per_frame, bool), "a bool")
        if self.min_pixels > self.max_pixels:
            raise VideoError(f"min_pixels must not exceed max_pixels, got {self.min_pixels} and {self.max_pixels}")
        if self.min_frames > self.max_frames:
            raise VideoError(f"min_frames must not exceed max_frames, got {self.min_frames} and {self.max_frames}")


@dataclass(frozen=True, kw_only=True)
class FrameSettings(VideoSettings):
    """Frame models (LLaVA-OneVision, LLaVA-NeXT-Video, InternVL).

    Attributes:
        size: (height, width) of a resized frame; exclusive with shortest_edge.
        shortest_edge: length of the shorter side after a resize that keeps the aspect ratio.
        crop: (height, width) cut from the centre after the resize; required with shortest_edge.
        tokens_per_frame: placeholder tokens one frame takes in the prompt.
        initial_shift: InternVL: first sampled position in frames, True = half a sampling step.
    """

    size: tuple[int, int] | None = (384, 384)
    shortest_edge: int | None = None
    crop: tuple[int, int] | None = None
    tokens_per_frame: int = 196
    initial_shift: bool | float = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "crop"):
            value = getattr(self, name)
            valid = value is None or (isinstance(value, tuple) and len(value) == 2 and all(map(is_count, value)))
            self._require(name, valid, "a pair of positive integers or None")
        self._require("shortest_edge", self.shortest_edge is None or is_count(self.shortest_edge), "a positive integer")
        self._require("tokens_per_frame", is_count(self.tokens_per_frame), "a positive integer")
        self._require(
            "initial_shift",
            isinstance(self.initial_shift, bool) or (is_finite(self.initial_shift) and self.initial_shift >= 0),
            "a bool or a number >= 0",
        )
        if (self.size is None) == (self.shortest_edge is None):
            raise VideoError(
                f"exactly one of size and shortest_edge must be set, got {self.size}, {self.shortest_edge}"
            )
        if self.shortest_edge is not None and self.crop is None:
            raise VideoError("crop must be set with shortest_edge, or frames of other videos would differ in size")


def is_finite(value: object) -> bool:
    """Whether it is a number that a float can hold; a bool is none."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_count(value: object) -> bool:
    """Whether it is an integer above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


KINDS: dict[str, type[PatchSettings] | type[FrameSettings]] = {
    "qwen2_vl": PatchSettings,
    "qwen2_5_vl": PatchSettings,
    "qwen3_vl": PatchSettings,
    "llava_onevision": FrameSettings,
    "llava_next_video": FrameSettings,
    "internvl": FrameSettings,
}

# Where transformers takes every frame unless told otherwise, a file is sampled as usual for the model: 2 per second
# (Qwen), 32 frames (LLaVA-OneVision), 8 frames (LLaVA-NeXT-Video, InternVL).
FAMILIES: dict[str, PatchSettings | FrameSettings] = {
    "qwen2_vl": PatchSettings(family="qwen2_vl", fps=2.0),
    "qwen2_5_vl": PatchSettings(family="qwen2_5_vl", fps=2.0),
    "qwen3_vl": PatchSettings(
        family="qwen3_vl",
        fps=2.0,
        patch_size=16,
        image_mean=HALF,
        image_std=HALF,
        min_pixels=128 * 32 * 32,
        max_pixels=768 * 32 * 32,
        max_video_tokens=768,
    ),
    "llava_onevision": FrameSettings(family="llava_onevision", num_frames=32),
    "llava_next_video": FrameSettings(
        family="llava_next_video", num_frames=8, size=None, shortest_edge=224, crop=(224, 224), tokens_per_frame=64
    ),
    "internvl": FrameSettings(family="internvl", num_frames=8, tokens_per_frame=256, initial_shift=True),
}
