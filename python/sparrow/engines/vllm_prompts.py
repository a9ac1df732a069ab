"""Questions about frames as vLLM's engine takes them: text with placeholders, and the frames as they are.

vLLM runs the checkpoint's own processor over them; frames are not sampled again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparrow.video import VideoInfo

RENUMBERED = ("qwen2_vl", "qwen2_5_vl")  # where vLLM's text after a visual block is numbered unlike transformers'


def numbering_of(family: str) -> str:
    """By which rule vLLM numbers this family's prompts, "hf" or "reference" (see states.positions)."""
    return "reference" if family in RENUMBERED else "hf"


def vllm_prompt(
    tokenizer: Any,
    question: str,
    videos: Sequence[tuple[np.ndarray, VideoInfo]] = (),
    images: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """One question after the images and then the videos, through the tokenizer's chat template.

    Args:
        videos: frames uint8 [T, H, W, 3] and where they lie, as load_video returns them.
        images: uint8 [H, W, 3].
    """
    parts: list[dict[str, str]] = [{"type": "image"}] * len(images) + [{"type": "video"}] * len(videos)
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    made: dict[str, Any] = {
        "prompt": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    }
    data: dict[str, list[Any]] = {}
    if len(images):
        data["image"] = list(images)
    if len(videos):
        data["video"] = [(frames, _metadata(info)) for frames, info in videos]
    return made | ({"multi_modal_data": data} if data else {})


def _metadata(info: VideoInfo) -> dict[str, Any]:
    rate = info.fps or info.sampled_fps
    return {
        "total_num_frames": info.total_frames, "fps": rate, "frames_indices": list(info.indices),
        "duration": info.total_frames / rate, "height": info.height, "width": info.width, "video_backend": "pyav",
        "do_sample_frames": False,
    }  # fmt: skip
