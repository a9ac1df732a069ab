"""What settings of videos and of still images have in common: normalisation, and the size of a frame or a tile."""

import math
from dataclasses import dataclass

from sparrow.video.info import VideoError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
KNOWN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "internvl")
Triple = tuple[float, float, float]
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """How pixels become numbers.

    Attributes:
        family: `model_type` of the model's configuration, a key of FAMILIES.
        image_mean: per colour channel, in units of a rescaled pixel.
        image_std: as image_mean.
        rescale_factor: multiplies a pixel value 0..255.
    """

    family: str
    image_mean: Triple = CLIP_MEAN
    image_std: Triple = CLIP_STD
    rescale_factor: float = 1 / 255

    def __post_init__(self) -> None:
        if self.family not in KNOWN:
            raise VideoError(f"family must be one of {', '.join(KNOWN)}, got {self.family!r}")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 3 or not all(is_finite(v) for v in value):
                raise VideoError(f"{name} must be three finite numbers, got {value!r}")
        if 0 in self.image_std:
            raise VideoError(f"image_std must not contain 0, got {self.image_std}")
        self._require("rescale_factor", is_finite(self.rescale_factor) and self.rescale_factor > 0, "a positive number")

    def _require(self, name: str, valid: bool, rule: str) -> None:
        if not valid:
            raise VideoError(f"{name} must be {rule}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class FixedSize(PixelSettings):
    """Frames, or tiles of an image, of one size.

    Attributes:
        size: (height, width) after the resize; exclusive with shortest_edge.
        shortest_edge: length of the shorter side after a resize that keeps the aspect ratio.
        crop: (height, width) cut from the centre after the resize; required with shortest_edge.
    """

    size: Pair | None = (384, 384)
    shortest_edge: int | None = None
    crop: Pair | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "crop"):
            value = getattr(self, name)
            self._require(name, value is None or is_pair(value), "a pair of positive integers or None")
        self._require("shortest_edge", self.shortest_edge is None or is_count(self.shortest_edge), "a positive integer")
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


def is_pair(value: object) -> bool:
    """Whether it is a tuple of two such integers."""
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_count, value))
