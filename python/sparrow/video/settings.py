"""Preprocessing settings per model family: transformers' defaults, or those of a checkpoint folder.

Two kinds of model take video. Patch models (Qwen-VL) keep the aspect ratio, choose a size within a pixel budget and
take flat patches. Frame models (LLaVA, InternVL) take every frame at one fixed size. Still images have settings of
their own (image_settings.py).
"""

from dataclasses import dataclass, fields

from sparrow.video.image_settings import IMAGES, ImageSettings, PatchImages, TileImages
from sparrow.video.info import VideoError
from sparrow.video.pixel_settings import HALF, FixedSize, PixelSettings, is_count, is_finite


@dataclass(frozen=True, kw_only=True)
class VideoSettings(PixelSettings):
    """What every family has.

    Attributes:
        num_frames: frames sampled from a file when the caller names neither number nor rate (fewer if it has fewer).
        fps: sampled frames per second in that case; at most one of the two.
        chat_template: Jinja template of the processor; None = the tokenizer's own.
        image: how still images are made into pixels; a text says why they cannot be.
    """

    num_frames: int | None = None
    fps: float | None = None
    chat_template: str | None = None
    image: ImageSettings | str = "these settings are for videos alone"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_frames", self.num_frames is None or is_count(self.num_frames), "a positive integer or None")
        self._require("fps", self.fps is None or (is_finite(self.fps) and self.fps > 0), "a positive number or None")
        if self.num_frames is not None and self.fps is not None:
            raise VideoError(f"at most one of num_frames and fps may be set, got {self.num_frames} and {self.fps}")
        self._require("image", isinstance(self.image, (PatchImages, TileImages, str)), "settings of images")


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
class FrameSettings(FixedSize, VideoSettings):
    """Frame models (LLaVA-OneVision, LLaVA-NeXT-Video, InternVL).

    Attributes:
        tokens_per_frame: placeholder tokens one frame takes in the prompt.
        initial_shift: InternVL: first sampled position in frames, True = half a sampling step.
    """

    tokens_per_frame: int = 196
    initial_shift: bool | float = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("tokens_per_frame", is_count(self.tokens_per_frame), "a positive integer")
        self._require(
            "initial_shift",
            isinstance(self.initial_shift, bool) or (is_finite(self.initial_shift) and self.initial_shift >= 0),
            "a bool or a number >= 0",
        )


# Where transformers takes every frame unless told otherwise, a file is sampled as usual for the model: 2 per second
# (Qwen), 32 frames (LLaVA-OneVision), 8 frames (LLaVA-NeXT-Video, InternVL).
FAMILIES: dict[str, PatchSettings | FrameSettings] = {
    "qwen2_vl": PatchSettings(family="qwen2_vl", fps=2.0, image=IMAGES["qwen2_vl"]),
    "qwen2_5_vl": PatchSettings(family="qwen2_5_vl", fps=2.0, image=IMAGES["qwen2_5_vl"]),
    "qwen3_vl": PatchSettings(
        family="qwen3_vl",
        image=IMAGES["qwen3_vl"],
        fps=2.0,
        patch_size=16,
        image_mean=HALF,
        image_std=HALF,
        min_pixels=128 * 32 * 32,
        max_pixels=768 * 32 * 32,
        max_video_tokens=768,
    ),
    "llava_onevision": FrameSettings(family="llava_onevision", num_frames=32, image=IMAGES["llava_onevision"]),
    "llava_next_video": FrameSettings(
        family="llava_next_video",
        num_frames=8,
        size=None,
        shortest_edge=224,
        crop=(224, 224),
        tokens_per_frame=64,
        image=IMAGES["llava_next_video"],
    ),
    "internvl": FrameSettings(
        family="internvl", num_frames=8, tokens_per_frame=256, initial_shift=True, image=IMAGES["internvl"]
    ),
}
