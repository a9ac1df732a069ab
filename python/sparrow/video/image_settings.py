"""Settings of still images per family: transformers' defaults, or those of a checkpoint folder (image_checkpoint.py).

Patch models (Qwen-VL) take an image as a video of one frame, with a pixel budget of its own. LLaVA and InternVL take
the whole image at the size of a tile, and the tiles it is cut into; LLaVA puts the features of the tiles together
again and drops those of the border.
"""

from dataclasses import dataclass
from typing import TypeAlias

from sparrow.video.info import VideoError
from sparrow.video.pixel_settings import HALF, FixedSize, Pair, PixelSettings, is_count, is_pair


@dataclass(frozen=True, kw_only=True)
class PatchImages(PixelSettings):
    """Patch models (Qwen2-VL, Qwen2.5-VL, Qwen3-VL).

    Attributes:
        patch_size: pixels per patch side.
        merge_size: patches per side that become one token.
        temporal_patch_size: frames per patch, all of them the image.
        min_pixels: lower bound of height * width after the resize.
        max_pixels: upper bound of the same.
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 1280 * 28 * 28

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels"):
            self._require(name, is_count(getattr(self, name)), "a positive integer")
        if self.min_pixels > self.max_pixels:
            raise VideoError(f"min_pixels must not exceed max_pixels, got {self.min_pixels} and {self.max_pixels}")


@dataclass(frozen=True, kw_only=True)
class TileImages(FixedSize):
    """Frame models. `size` or `shortest_edge` and `crop` are a tile's.

    Attributes:
        tokens: placeholder tokens of a tile (InternVL), or of the whole image at the size of a tile (LLaVA).
        min_tiles: InternVL: fewest tiles an image is cut into.
        max_tiles: InternVL: most such tiles; the whole image comes on top where there are several.
        pinpoints: LLaVA: (height, width) an image may be cut into tiles at.
        grid: LLaVA: (rows, columns) of a tile's features.
        max_area: LLaVA-OneVision: the features put together are shrunk to those of this many tiles; None = never.
    """

    tokens: int = 256
    min_tiles: int = 1
    max_tiles: int = 12
    pinpoints: tuple[Pair, ...] = ()
    grid: Pair = (1, 1)
    max_area: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokens", "min_tiles", "max_tiles"):
            self._require(name, is_count(getattr(self, name)), "a positive integer")
        if self.min_tiles > self.max_tiles:
            raise VideoError(f"min_patches must not exceed max_patches, got {self.min_tiles} and {self.max_tiles}")
        self._require("grid", is_pair(self.grid), "a pair of positive integers")
        self._require("max_area", self.max_area is None or is_count(self.max_area), "a positive integer or None")
        pairs = isinstance(self.pinpoints, tuple) and all(map(is_pair, self.pinpoints))
        self._require("pinpoints", pairs, "pairs of positive integers")
        if self.family == "internvl":
            self._require("size", self.size is not None, "a pair of positive integers")
        else:
            self._require("pinpoints", bool(self.pinpoints), "at least one pair of positive integers")


ImageSettings: TypeAlias = PatchImages | TileImages

_SIDES = tuple(range(384, 2305, 384))
IMAGES: dict[str, ImageSettings] = {
    "qwen2_vl": PatchImages(family="qwen2_vl"),
    "qwen2_5_vl": PatchImages(family="qwen2_5_vl"),
    # its processor is Qwen2-VL's; these are the values of the published checkpoints
    "qwen3_vl": PatchImages(
        family="qwen3_vl", patch_size=16, image_mean=HALF, image_std=HALF, min_pixels=256**2, max_pixels=4096**2
    ),
    "llava_onevision": TileImages(
        family="llava_onevision", tokens=729, grid=(27, 27), max_area=9,
        pinpoints=tuple((height, width) for height in _SIDES for width in _SIDES),
    ),
    "llava_next_video": TileImages(
        family="llava_next_video", size=None, shortest_edge=224, crop=(224, 224), tokens=256, grid=(16, 16),
        pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    ),
    "internvl": TileImages(family="internvl"),
}  # fmt: skip
