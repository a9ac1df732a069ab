"""What tests/golden/video.json covers: families, clips and sampling; and how a tensor becomes a hash."""

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


def _cases() -> list[Case]:
    small, odd, wide, tall = (48, 64), (97, 131), (40, 400), (301, 60)
    cases = []
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "internvl"):

        def add(name: str, *clips: Shape, family: str = family, **rest: Any) -> None:
            cases.append(Case(f"{family}/{name}", family, clips, **rest))

        add("text")
        if family != "qwen3_vl":
            # a single frame is refused by Qwen3-VL's own processor
            add("one_frame", (1, *small))
        add("two_frames_odd", (2, *odd))
        add("five_frames_wide", (5, *wide))
        add("eight_frames_tall", (8, *tall), fps=29.97)
        add("33_frames", (33, *small), fps=25.0)
        add("num_frames_6", (33, *odd), fps=30.0, sample={"num_frames": 6})
        add("num_frames_all", (8, *odd), sample={"num_frames": 8})
        add("fps_2", (33, *odd), fps=10.0, sample={"fps": 2})
        add("fps_fraction", (90, *small), fps=29.97, sample={"fps": 1.7})
        add("two_videos", (4, *odd), (4, *small), fps=8.0)
        add("two_videos_sampled", (33, *odd), (20, *small), fps=8.0, sample={"num_frames": 4})
    patches = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}}
    add = cases.append
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        add(Case(f"{family}/small_patches", family, ((8, *odd),), 2.0, config=patches))
        add(Case(f"{family}/larger_than_budget", family, ((2, 720, 1280),), 25.0, config=patches))
        add(Case(f"{family}/capped", family, ((12, 240, 320),), 25.0, config={"cap_pixels_per_frame": True}))
        budget = {"cap_pixels_per_frame": True, "max_video_tokens": 300, "patch_size": 8}
        budget["size"] = {"shortest_edge": 1024, "longest_edge": 65536}
        add(Case(f"{family}/capped_tight", family, ((12, 240, 320),), 25.0, config=budget))
        frames = {"temporal_patch_size": 4, "min_frames": 8, "max_frames": 16, "merge_size": 1}
        add(Case(f"{family}/groups_of_4", family, ((33, *small),), 10.0, {"fps": 7}, frames))
        add(
            Case(
                f"{family}/groups_of_4_padded", family, ((33, *small),), 10.0, config=frames | {"image_std": [1, 2, 3]}
            )
        )
    add(Case("llava_onevision/size_56", "llava_onevision", ((3, *odd),), config={"size": {"height": 56, "width": 70}}))
    add(Case("internvl/size_448", "internvl", ((3, *odd),), config={"size": {"height": 448, "width": 448}}))
    add(Case("internvl/shift", "internvl", ((33, *odd),), 8.0, {"num_frames": 5}, {"initial_shift": 2.5}))
    crop = {"size": {"shortest_edge": 50}, "crop_size": {"height": 64, "width": 33}, "do_center_crop": True}
    add(Case("llava_next_video/crop_with_border", "llava_next_video", ((3, *odd),), config=crop))
    add(Case("llava_onevision/crop", "llava_onevision", ((3, *odd),), config=crop))
    same = {"size": {"height": 97, "width": 131}, "rescale_factor": 1 / 127.5, "image_mean": [0.1, 0.2, 0.3]}
    add(Case("llava_onevision/no_resize", "llava_onevision", ((3, *odd),), config=same))
    return cases


CASES = _cases()


def clip(shape: Shape, seed: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: gradients, a moving square and hash noise, from integer arithmetic alone."""
    t, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    frames = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        noise = (t * 7919 + y * 104729 + x * 1299709 + channel * 15485863 + seed * 32452843).astype(np.uint64)
        noise = (noise * np.uint64(2654435761) >> np.uint64(13)) % np.uint64(97)
        ramp = (x * (channel + 1) + y * (3 - channel) + 5 * t) % 160
        frames[..., channel] = (ramp + noise.astype(np.int64)).astype(np.uint8)
    for i in range(shape[0]):
        top, left = (3 * i) % max(1, shape[1] - 9), (5 * i) % max(1, shape[2] - 9)
        frames[i, top : top + 9, left : left + 9] = (250, 20 * seed % 256, 3)
    return frames


def tokenizer(family: str) -> Any:
    """Bytes and special tokens only: no learned merge could differ between versions."""
    # transformers looks for torchvision when it is imported, so make_golden must come first
    from sparrow.targets.tokenizer import BYTES, SPECIAL_TOKENS, build_tokenizer

    if family.startswith("qwen"):
        return build_tokenizer(BYTES + len(SPECIAL_TOKENS))
    named = INTERNVL_TOKENS if family == "internvl" else LLAVA_TOKENS
    return build_tokenizer(BYTES + len(SPECIAL_TOKENS) + len(named), named_tokens=named)


def digest(tensor: torch.Tensor) -> str:
    """Type, shape and SHA-256 of the bytes."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)} {hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()}"
