"""What a conversation is made of: questions, their videos and images, answers."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparrow.video import VideoInfo, load_video, read_image
from sparrow.video.load import is_clip


@dataclass(frozen=True)
class Clip:
    """A video or an image of the conversation.

    Attributes:
        frames: uint8 [T, H, W, 3], of an image [H, W, 3]; read-only.
        info: where they lie in their source.
        name: a hash of both.
        medium: "video" or "image".
    """

    frames: np.ndarray
    info: VideoInfo
    name: bytes
    medium: str = "video"

    @classmethod
    def of(cls, frames: np.ndarray, info: VideoInfo, medium: str = "video") -> "Clip":
        """With frames of its own, as nobody may change them."""
        frames = np.array(frames, order="C")
        frames.setflags(write=False)
        digest = hashlib.sha256(f"{frames.shape} {info.fps!r} {info.total_frames} {info.indices}".encode())
        digest.update(frames.data)
        return cls(frames, info, digest.digest(), medium)

    def tensor(self) -> Tensor:
        """A copy of the frames."""
        return torch.from_numpy(self.frames.copy())


@dataclass(frozen=True)
class Turn:
    """A question with its videos and images, and the answer."""

    text: str
    clips: tuple[Clip, ...]
    answer: str


def load_clips(videos: Any, settings: Any, reading: dict[str, Any]) -> list[Clip]:
    """Reads videos: one source or a list of them, as of prepare; reading: arguments of load_video.

    What on_damage="skip" leaves out is told in a UserWarning.
    """
    if videos is None:
        return []
    clips = []
    for source in [videos] if is_clip(videos) or not isinstance(videos, (list, tuple)) else videos:
        frames, info = source if is_clip(source) else load_video(source, settings, **reading)
        for text in info.skipped:
            warnings.warn(f"{source}: skipped: {text}", UserWarning, stacklevel=3)
        clips.append(Clip.of(frames, info))
    return clips


def load_images(images: Any) -> list[Clip]:
    """Reads images: one source or a list of them, as of prepare."""
    if images is None:
        return []
    sources = images if isinstance(images, (list, tuple)) else [images]
    read = [read_image(source, f"image {i}") for i, source in enumerate(sources)]
    return [Clip.of(image, VideoInfo(1, None, (0,), *image.shape[:2]), "image") for image in read]


def as_messages(system: str | None, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Chat messages; the parts of videos and images stand for the turns' clips, in order."""
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for turn in turns:
        parts = [{"type": clip.medium} for clip in turn.clips]
        parts += [{"type": "text", "text": turn.text}] if turn.text else []
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages
