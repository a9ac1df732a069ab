"""From a video file, folder or array to the exact tensors each video LLM takes. Needs PyAV, torch and NumPy only.

`load_video` decodes and samples frames, `prepare` turns a prompt and its videos into the arguments of `model.generate`,
`together` several prompts into those of a batch.
The tensors are bit-identical to those of the transformers processors (tests/video/golden), which need torchvision and
Pillow.
"""

from sparrow.video.checkpoint import load_settings, save_settings
from sparrow.video.info import VideoError, VideoInfo
from sparrow.video.load import load_video
from sparrow.video.pixels import frame_pixels, patch_pixels
from sparrow.video.prompt import prepare
from sparrow.video.settings import (
    FAMILIES,
    FrameSettings,
    PatchSettings,
    VideoSettings,
)
from sparrow.video.together import together

__all__ = [
    "FAMILIES",
    "FrameSettings",
    "PatchSettings",
    "VideoError",
    "VideoInfo",
    "VideoSettings",
    "frame_pixels",
    "load_settings",
    "load_video",
    "patch_pixels",
    "prepare",
    "save_settings",
    "together",
]
