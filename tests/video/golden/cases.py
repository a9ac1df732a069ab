"""What tests/video/golden/video.json covers: families, clips and sampling; and how a tensor becomes a hash."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

# (frames, height, width)
Shape = tuple[int, int, int]

QWEN_PROMPT = "<|im_start|>user\n{videos}Was sieht man? 何が見えますか。<|im_end|>\n<|im_start|>assistant\n"
PLAIN_PROMPT = "USER: {videos}\nWas sieht man? 何が見えますか。 ASSISTANT:"
INTERNVL_TOKENS = {
    "video_token": "<video>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
}
WHOLE_CONFIG = {
    "llava_onevision": {"num_image_tokens": 729},
    "llava_next_video": {"patch_size": 14},
    "internvl": {"image_seq_length": 256},
}
LLAVA_TOKENS = {"video_token": "<video>", "image_token": "<image>"}


@dataclass(frozen=True)
class Case:
    """One prompt and its clips; `sample` is num_frames or fps, `config` what a checkpoint's processor config says."""

    name: str
    family: str
    clips: tuple[Shape, ...]
    fps: float | None = None
    sample: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def whole_config(self) -> dict[str, int]:
        """What the checkpoint's processor_config.json says."""
        return WHOLE_CONFIG.get(self.family, {})

    @property
    def prompt(self) -> str:
        """Text with one placeholder per clip."""
        if self.family.startswith("qwen"):
            return QWEN_PROMPT.format(videos="<|vision_start|><|video_pad|><|vision_end|>" * len(self.clips))
        return PLAIN_PROMPT.format(videos="<video>" * len(self.clips))


SMALL, ODD, WIDE, TALL, LARGE = (48, 64), (97, 131), (40, 400), (301, 60), (720, 1280)
CROP = {"size": {"shortest_edge": 50}, "crop_size": {"height": 64, "width": 33}, "do_center_crop": True}


def _every_family(family: str) -> list[Case]:
    def case(name: str, *clips: Shape, **rest: Any) -> Case:
        return Case(f"{family}/{name}", family, clips, **rest)

    cases = [
        case("text"),
        case("five_frames_wide", (5, *WIDE)),
        case("num_frames_6", (33, *ODD), fps=30.0, sample={"num_frames": 6}),
        case("fps_2", (33, *ODD), fps=10.0, sample={"fps": 2}),
        case("two_videos_sampled", (33, *ODD), (20, *SMALL), fps=8.0, sample={"num_frames": 4}),
    ]
    if family == "qwen2_vl":
        # differs from Qwen2.5-VL in the clock alone
        return cases
    cases += [
        case("two_frames_odd", (2, *ODD)),
        case("two_frames_large", (2, *LARGE)),
        case("eight_frames_tall", (8, *TALL), fps=29.97),
        case("33_frames", (33, *SMALL), fps=25.0),
        case("num_frames_all", (8, *ODD), sample={"num_frames": 8}),
        case("fps_fraction", (90, *SMALL), fps=29.97, sample={"fps": 1.7}),
        case("two_videos", (4, *ODD), (4, *SMALL), fps=8.0),
    ]
    # a single frame is refused by Qwen3-VL's own processor
    return cases if family == "qwen3_vl" else [*cases, case("one_frame", (1, *SMALL))]


def _configured(family: str) -> list[Case]:
    def case(name: str, *clips: Shape, **rest: Any) -> Case:
        return Case(f"{family}/{name}", family, clips, **rest)

    if family in ("qwen2_5_vl", "qwen3_vl"):
        patches = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}}
        capped = {"cap_pixels_per_frame": True}
        tight = {"max_video_tokens": 300, "patch_size": 8, "size": {"shortest_edge": 1024, "longest_edge": 65536}}
        groups = {"temporal_patch_size": 4, "min_frames": 8, "max_frames": 16, "merge_size": 1}
        return [
            case("small_patches", (8, *ODD), fps=2.0, config=patches),
            case("larger_than_budget", (2, *LARGE), fps=25.0, config=patches),
            case("capped", (12, 240, 320), fps=25.0, config=capped),
            case("capped_tight", (12, 240, 320), fps=25.0, config=capped | tight),
            case("fps_above_source", (9, *SMALL), fps=10.0, sample={"fps": 24}),
            case("groups_of_4", (33, *SMALL), fps=10.0, sample={"fps": 7}, config=groups),
            case("groups_of_4_padded", (9, *SMALL), fps=10.0, config=groups | {"image_std": [1, 2, 3]}),
        ]
    if family == "llava_onevision":
        same = {"size": {"height": 97, "width": 131}, "rescale_factor": 1 / 127.5, "image_mean": [0.1, 0.2, 0.3]}
        return [
            case("size_56_70", (3, *ODD), config={"size": {"height": 56, "width": 70}}),
            case("crop", (3, *ODD), config=CROP),
            case("no_resize", (3, *ODD), config=same),
        ]
    if family == "internvl":
        return [
            case("size_448", (3, *ODD), config={"size": {"height": 448, "width": 448}}),
            case("shift", (33, *ODD), fps=8.0, sample={"num_frames": 5}, config={"initial_shift": 2.5}),
        ]
    return [case("crop_with_border", (3, *ODD), config=CROP)] if family == "llava_next_video" else []


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "internvl")
CASES = [case for family in FAMILIES for case in (*_every_family(family), *_configured(family))]


def clip(shape: Shape, seed: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: gradients, a moving square and hash noise, from integer arithmetic alone."""
    t, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    frames = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        noise = (t * 7919 + y * 104729 + x * 1299709 + channel * 15485863 + seed * 32452843).astype(np.uint32)
        noise = (noise * np.uint32(2654435761)) >> np.uint32(26)
        ramp = ((x * (channel + 1) + y * (3 - channel) + 5 * t) % 190).astype(np.uint8)
        frames[..., channel] = ramp + noise.astype(np.uint8)
    for i in range(shape[0]):
        top, left = (3 * i) % max(1, shape[1] - 9), (5 * i) % max(1, shape[2] - 9)
        frames[i, top : top + 9, left : left + 9] = (250, 20 * seed % 256, 3)
    return frames


def tokenizer(family: str) -> Any:
    """Bytes and special tokens only: no learned merge could differ between versions."""
    # transformers looks for torchvision when it is imported, so make_golden must come first
    from sparrow.miniature.tokenizer import BYTES, SPECIAL_TOKENS, build_tokenizer

    if family.startswith("qwen"):
        return build_tokenizer(BYTES + len(SPECIAL_TOKENS))
    named = INTERNVL_TOKENS if family == "internvl" else LLAVA_TOKENS
    return build_tokenizer(BYTES + len(SPECIAL_TOKENS) + len(named), named_tokens=named)


def digest(tensor: torch.Tensor) -> str:
    """Type, shape and SHA-256 of the bytes."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)} {hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()}"
