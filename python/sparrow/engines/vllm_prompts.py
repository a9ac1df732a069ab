"""Questions about frames as vLLM's engine takes them: text with placeholders, and the frames as they are.

vLLM runs the checkpoint's own processor over them; frames are not sampled again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparrow.video import VideoInfo
from sparrow.video.messages import render

RENUMBERED = ("qwen2_vl", "qwen2_5_vl")  # where vLLM's text after a visual block is numbered unlike transformers'


def numbering_of(family: str) -> str:
    """By which rule vLLM numbers this family's prompts, "hf" or "reference" (see states.positions)."""
    return "reference" if family in RENUMBERED else "hf"


def vllm_prompt(
    tokenizer: Any,
    question: str | Sequence[Mapping[str, Any]],
    videos: Sequence[tuple[np.ndarray, VideoInfo]] = (),
    images: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """A prompt through the tokenizer's chat template.

    Args:
        question: text, which is put after the images and then the videos; or messages with a part for each of them.
        videos: frames uint8 [T, H, W, 3] and where they lie, as load_video returns them.
        images: uint8 [H, W, 3].
    """
    messages: list[Any] = list(question)
    if isinstance(question, str):
        parts: list[dict[str, str]] = [{"type": "image"}] * len(images) + [{"type": "video"}] * len(videos)
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    made: dict[str, Any] = {"prompt": render(messages, tokenizer, None)}
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
