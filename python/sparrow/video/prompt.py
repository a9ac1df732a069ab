"""Prompt and videos to the arguments of `model.generate`: placeholders expanded, token types, grids, clocks."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparrow.video.decode import Progress
from sparrow.video.info import ASSUMED_FPS, VideoError, VideoInfo
from sparrow.video.load import Source, check_frames, load_video
from sparrow.video.pixels import frame_pixels, patch_pixels
from sparrow.video.settings import FAMILIES, FrameSettings, PatchSettings

Clip = tuple[np.ndarray, VideoInfo]
Message = Mapping[str, Any]
VIDEO_KEYS = ("video", "path", "url")


def prepare(
    settings: PatchSettings | FrameSettings | str,
    tokenizer: Any,
    prompt: str | Sequence[Message],
    videos: Sequence[Source | Clip] | Source | None = None,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    progress: Progress | None = None,
    on_damage: str = "raise",
) -> dict[str, Tensor]:
    """Builds what `model.generate(**inputs)` takes, batch 1, with the bits of the family's transformers processor.

    Args:
        settings: of the checkpoint (`load_settings`), or a family's name for its defaults.
        tokenizer: called as `tokenizer(text, add_special_tokens=...)["input_ids"]`; its `apply_chat_template` renders
            messages.
        prompt: chat messages; or a question, put after the videos in one user message; or, if it contains the video
            placeholder, text that went through the chat template already.
        videos: one source per placeholder in order, or the pairs that load_video returns. None = those named in the
            messages ({"type": "video", "video": source}).
        num_frames: frames per video, see load_video.
        fps: frames per second, see load_video.
        progress: see load_video.
        on_damage: see load_video; what "skip" leaves out is told in a UserWarning.

    Returns:
        input_ids, attention_mask int64 [1, P]; Qwen: mm_token_type_ids int64 [1, P]. With videos, Qwen:
        pixel_values_videos and video_grid_thw (see patch_pixels), Qwen2.5-VL also second_per_grid_ts float32 [videos];
        LLaVA: pixel_values_videos float32 [videos, T, 3, H, W]; InternVL: pixel_values float32 [all frames, 3, H, W].

    Raises:
        FileNotFoundError: a video does not exist.
        VideoError: a video cannot be read, or prompt, tokenizer and videos do not fit together.
    """
    if isinstance(settings, str):
        if settings not in FAMILIES:
            raise VideoError(f"settings must be settings or one of {', '.join(FAMILIES)}, got {settings!r}")
        settings = FAMILIES[settings]
    sources = _sources(prompt, videos)
    clips = [_clip(source, settings, num_frames, fps, progress, on_damage) for source in sources]
    token = _video_token(settings.family, tokenizer)
    text = _text(settings, tokenizer, prompt, len(clips), token)
    inputs, replacements = _pixels(settings, tokenizer, clips, token)
    return _tokens(settings, tokenizer, _expand(text, token, replacements), token, "".join(replacements)) | inputs


def _sources(prompt: str | Sequence[Message], videos: Any) -> list[Any]:
    """The videos given, or those named in the messages."""
    if videos is None:
        return [] if isinstance(prompt, str) else [_named(part) for part in _video_parts(prompt)]
    if isinstance(videos, (str, Path, np.ndarray, torch.Tensor)) or _is_clip(videos):
        return [videos]
    if not isinstance(videos, (list, tuple)):
        raise VideoError(f"videos must be a sequence of sources, got {type(videos).__name__}")
    if videos and all(isinstance(v, (np.ndarray, torch.Tensor)) and v.ndim == 3 for v in videos):
        # a list of single frames: one video
        return [videos]
    return list(videos)


def _is_clip(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], VideoInfo)


def _named(part: Message) -> Any:
    source = next((part[key] for key in VIDEO_KEYS if key in part), None)
    if source is None:
        raise VideoError("videos must be given, or named in the messages as {'type': 'video', 'video': source}")
    return source


def _video_parts(messages: Sequence[Message]) -> list[Message]:
    """The content parts that are videos, in order."""
    parts = []
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise VideoError(f"a message must be a mapping with role and content, got {message!r}")
        if not isinstance(message["content"], str):
            parts += [part for part in message["content"] if part.get("type") == "video" or "video" in part]
    return parts


def _clip(
    source: Any,
    settings: PatchSettings | FrameSettings,
    num_frames: int | None,
    fps: float | None,
    progress: Any,
    on_damage: str,
) -> Clip:
    if not _is_clip(source):
        if isinstance(source, str) and "://" in source:
            raise VideoError(f"a video must be on disk, addresses are not fetched, got {source!r}")
        clip = load_video(source, settings, num_frames=num_frames, fps=fps, progress=progress, on_damage=on_damage)
        for text in clip[1].skipped:
            warnings.warn(f"{source}: skipped: {text}", UserWarning, stacklevel=4)
        return clip
    if num_frames is not None or fps is not None:
        raise VideoError("num_frames and fps go to load_video where a video is given as its result")
    frames, info = check_frames(source[0], "frames"), source[1]
    if len(info.indices) != len(frames):
        raise VideoError(
            f"info.indices must name one source frame per frame, got {len(info.indices)} for {len(frames)} frames"
        )
    return frames, info


def _video_token(family: str, tokenizer: Any) -> str:
    default = "<|video_pad|>" if family.startswith("qwen") else "<video>"
    return getattr(tokenizer, "video_token", None) or default


def _text(settings: PatchSettings | FrameSettings, tokenizer: Any, prompt: Any, count: int, token: str) -> str:
    """The prompt as text with one placeholder per video."""
    if isinstance(prompt, str) and token in prompt:
        text = prompt
    else:
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": [{"type": "video"}] * count + [{"type": "text", "text": prompt}]}]
        _video_parts(prompt)
        options = {} if settings.chat_template is None else {"chat_template": settings.chat_template}
        text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True, **options)
    if text.count(token) != count:
        raise VideoError(f"the prompt must have one {token} per video, got {text.count(token)} for {count} videos")
    return text


def _pixels(
    settings: PatchSettings | FrameSettings, tokenizer: Any, clips: list[Clip], token: str
) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors, the text that replaces each video's placeholder)."""
    if not clips:
        return {}, []
    if isinstance(settings, PatchSettings):
        pixels, grids = zip(*(patch_pixels(frames, settings) for frames, _ in clips), strict=True)
        inputs = {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.cat(grids)}
        if settings.family == "qwen2_5_vl":
            seconds = [settings.temporal_patch_size / info.sampled_fps for _, info in clips]
            inputs["second_per_grid_ts"] = torch.tensor(seconds, dtype=torch.float32)
        texts = [
            _patch_text(settings, tokenizer, token, grid[0].tolist(), info)
            for grid, (_, info) in zip(grids, clips, strict=True)
        ]
        return inputs, texts
    counts = [len(frames) for frames, _ in clips]
    if len(set(counts)) > 1:
        raise VideoError(
            f"{settings.family} takes videos of equal frame count in one prompt, got {counts}: pass num_frames"
        )
    frames = [frame_pixels(frames, settings) for frames, _ in clips]
    if settings.family == "internvl":
        return {"pixel_values": torch.cat(frames)}, [_numbered(settings, tokenizer, count) for count in counts]
    # LLaVA-OneVision ends a video with one newline embedding
    newline = settings.family == "llava_onevision"
    texts = [token * (count * settings.tokens_per_frame + newline) for count in counts]
    return {"pixel_values_videos": torch.stack(frames)}, texts


def _patch_text(settings: PatchSettings, tokenizer: Any, token: str, grid: list[int], info: VideoInfo) -> str:
    """Qwen: one placeholder per merged patch. Qwen3-VL: each temporal patch between vision marks, after its time.

    The template's own vision marks stay around the whole, as in transformers since 5.10.
    """
    t, h, w = grid
    per_patch = h * w // settings.merge_size**2
    if settings.family != "qwen3_vl":
        return token * (t * per_patch)
    start = getattr(tokenizer, "vision_start_token", "<|vision_start|>")
    end = getattr(tokenizer, "vision_end_token", "<|vision_end|>")
    group, fps = settings.temporal_patch_size, info.fps or ASSUMED_FPS
    seconds = [index / fps for index in info.indices]
    seconds += [seconds[-1]] * (-len(seconds) % group)
    middles = [(seconds[i] + seconds[i + group - 1]) / 2 for i in range(0, len(seconds), group)]
    return "".join(f"<{middle:.1f} seconds>{start}{token * per_patch}{end}" for middle in middles)


def _numbered(settings: FrameSettings, tokenizer: Any, count: int) -> str:
    """InternVL: every frame by number, between its image marks."""
    start = getattr(tokenizer, "start_image_token", "<img>")
    end = getattr(tokenizer, "end_image_token", "</img>")
    context = _context_token(tokenizer) * settings.tokens_per_frame
    return "\n".join(f"Frame{i + 1}: {start}{context}{end}" for i in range(count))


def _context_token(tokenizer: Any) -> str:
    return getattr(tokenizer, "context_image_token", "<IMG_CONTEXT>")


def _expand(text: str, token: str, replacements: list[str]) -> str:
    pieces = text.split(token)
    return pieces[0] + "".join(new + piece for new, piece in zip(replacements, pieces[1:], strict=True))


def _tokens(
    settings: PatchSettings | FrameSettings, tokenizer: Any, text: str, token: str, expansion: str
) -> dict[str, Tensor]:
    """Token ids with every placeholder checked to be one known id."""
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos and text.startswith(bos))
    ids = torch.tensor([tokenizer(text, add_special_tokens=special)["input_ids"]], dtype=torch.int64)
    placeholder = _context_token(tokenizer) if settings.family == "internvl" else token
    types = torch.zeros_like(ids)
    if expansion:
        own = tokenizer(placeholder, add_special_tokens=False)["input_ids"]
        if len(own) != 1:
            raise VideoError(f"the tokenizer must know {placeholder} as one token, it makes {len(own)} of it")
        is_video = ids == own[0]
        found, expected = int(is_video.sum()), expansion.count(placeholder)
        if found != expected:
            raise VideoError(f"the prompt must hold {expected} {placeholder} tokens for its videos, got {found}")
        types[is_video] = 2
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if isinstance(settings, PatchSettings):
        out["mm_token_type_ids"] = types
    return out
