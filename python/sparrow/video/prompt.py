"""Prompt and videos to the arguments of `model.generate`: placeholders expanded, token types, grids, clocks."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparrow.video.arrays import check_frames
from sparrow.video.decode import Progress
from sparrow.video.info import ASSUMED_FPS, VideoError, VideoInfo
from sparrow.video.load import Source, has_clock, is_clip, load_video
from sparrow.video.messages import Message, VideoPart, read_prompt, render
from sparrow.video.options import VideoOptions
from sparrow.video.pixels import frame_pixels, patch_pixels
from sparrow.video.settings import FAMILIES, FrameSettings, PatchSettings

Clip = tuple[np.ndarray, VideoInfo]
Settings = PatchSettings | FrameSettings


def prepare(
    settings: Settings | str,
    tokenizer: Any,
    prompt: str | Sequence[Message],
    videos: Sequence[Source | Clip] | Source | None = None,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
    on_damage: str = "raise",
    memo: dict[Any, Any] | None = None,
) -> dict[str, Tensor]:
    """Builds what `model.generate(**inputs)` takes, batch 1, with the bits of the family's transformers processor.

    Args:
        settings: of the checkpoint (`load_settings`), or a family's name for its defaults.
        tokenizer: called as `tokenizer(text, add_special_tokens=...)["input_ids"]`; its `apply_chat_template` renders
            messages.
        prompt: chat messages; or a question, put after the videos in one user message; or, if it contains the video
            placeholder, text that went through the chat template already. A video part of a message names its source,
            {"type": "video", "video": source}, and may have the options of VideoOptions, which go before num_frames
            and fps. Whatever a message holds is obeyed or refused.
        videos: one source per placeholder in order, or the pairs that load_video returns. None = those named in the
            messages.
        num_frames: frames per video, see load_video.
        fps: frames per second, see load_video.
        progress: see load_video.
        device: where the tensors go; None = the CPU.
        on_damage: see load_video; what "skip" leaves out is told in a UserWarning.
        memo: where pixels are kept, and found when the same arrays come again, unchanged.

    Returns:
        input_ids, attention_mask int64 [1, P]; Qwen: mm_token_type_ids int64 [1, P]. With videos, Qwen:
        pixel_values_videos and video_grid_thw (see patch_pixels), Qwen2.5-VL also second_per_grid_ts float32 [videos];
        LLaVA: pixel_values_videos float32 [videos, T, 3, H, W]; InternVL: pixel_values float32 [all frames, 3, H, W].

    Raises:
        FileNotFoundError: a video does not exist.
        VideoError: a video cannot be read, or prompt, tokenizer, videos and device do not fit together.
    """
    settings, place = _settings(settings), _device(device)
    if not callable(tokenizer):
        raise VideoError(f"tokenizer must be a tokenizer, got {type(tokenizer).__name__}")
    token, others = _placeholders(settings.family, tokenizer)
    messages, parts = read_prompt(prompt, videos, token, others)
    text = str(prompt) if messages is None else render(messages, tokenizer, settings.chat_template)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise VideoError(f"the prompt must be text that UTF-8 can hold: {error}") from error
    if text.count(token) != len(parts):
        raise VideoError(f"the prompt must have one {token} per video, got {text.count(token)} for {len(parts)} videos")
    for part in parts:
        part.options.check_family(settings)
    clips = [_clip(part, settings, num_frames, fps, progress, on_damage) for part in parts]
    inputs, replacements = _pixels(settings, tokenizer, clips, [part.options for part in parts], token, memo)
    text = _expand(text, token, replacements)
    inputs = _tokens(settings, tokenizer, text, token, others, "".join(replacements)) | inputs
    return inputs if place is None else {name: value.to(place) for name, value in inputs.items()}


def _settings(settings: Any) -> Settings:
    known = settings if isinstance(settings, (PatchSettings, FrameSettings)) else None
    known = FAMILIES.get(settings) if isinstance(settings, str) else known
    if known is None:
        raise VideoError(f"settings must be settings or one of {', '.join(FAMILIES)}, got {settings!r}")
    return known


def _device(device: Any) -> torch.device | None:
    """Checked before anything is decoded."""
    if device is None:
        return None
    if not isinstance(device, (str, torch.device)):
        raise VideoError(f"device must be a torch.device or its name, got {device!r}")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # AssertionError: a torch without CUDA
        raise VideoError(f"device must be one that this torch can use, got {str(device)!r}") from error
    if place.type == "meta":
        raise VideoError("device must be one that holds values, got 'meta'")
    return place


def _clip(
    part: VideoPart, settings: Settings, num_frames: int | None, fps: float | None, progress: Any, on_damage: str
) -> Clip:
    source, options = part.source, part.options
    if not is_clip(source):
        sampled, arguments = options.sampling(settings, has_clock(source), num_frames, fps)
        clip = load_video(source, sampled, progress=progress, on_damage=on_damage, **arguments)
        for text in clip[1].skipped:
            warnings.warn(f"{source}: skipped: {text}", UserWarning, stacklevel=4)
        return clip
    options.check_loaded()
    if num_frames is not None or fps is not None:
        raise VideoError("num_frames and fps go to load_video where a video is given as its result")
    frames, info = check_frames(source[0], "frames"), source[1]
    if len(info.indices) != len(frames):
        raise VideoError(
            f"info.indices must name one source frame per frame, got {len(info.indices)} for {len(frames)} frames"
        )
    return frames, info


def _placeholders(family: str, tokenizer: Any) -> tuple[str, list[str]]:
    """(the text that stands for a video, all others that stand for pixels or sound)."""
    qwen = family.startswith("qwen")
    video = getattr(tokenizer, "video_token", None) or ("<|video_pad|>" if qwen else "<video>")
    image = getattr(tokenizer, "image_token", None) or ("<|image_pad|>" if qwen else "<image>")
    others = [image, getattr(tokenizer, "audio_token", None)]
    if family == "internvl":
        others.append(_context_token(tokenizer))
    return video, [other for other in dict.fromkeys(others) if other and other != video]


def _pixels(
    settings: Settings,
    tokenizer: Any,
    clips: list[Clip],
    options: list[VideoOptions],
    token: str,
    memo: dict[Any, Any] | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors, the text that replaces each video's placeholder)."""
    if not clips:
        return {}, []
    if isinstance(settings, PatchSettings):
        sizes = [o.frame_size(frames.shape, settings) for o, (frames, _) in zip(options, clips, strict=True)]
        made = [_once(memo, patch_pixels, f, settings, size) for (f, _), size in zip(clips, sizes, strict=True)]
        pixels, grids = zip(*made, strict=True)
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
    frames = [_once(memo, frame_pixels, frames, settings) for frames, _ in clips]
    if settings.family == "internvl":
        return {"pixel_values": torch.cat(frames)}, [_numbered(settings, tokenizer, count) for count in counts]
    # LLaVA-OneVision ends a video with one newline embedding
    newline = settings.family == "llava_onevision"
    texts = [token * (count * settings.tokens_per_frame + newline) for count in counts]
    return {"pixel_values_videos": torch.stack(frames)}, texts


def _once(memo: dict[Any, Any] | None, make: Any, frames: np.ndarray, *more: Any) -> Any:
    """make(frames, *more), or what the memo has of it; the frames are kept with it, so that no others get their id."""
    if memo is None:
        return make(frames, *more)
    key = id(frames), *more
    if key not in memo:
        memo[key] = frames, make(frames, *more)
    return memo[key][1]


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
    settings: Settings, tokenizer: Any, text: str, token: str, others: list[str], expansion: str
) -> dict[str, Tensor]:
    """Token ids with every placeholder checked to be one known id, and no other placeholder among them."""
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
    for other in others:
        own = tokenizer(other, add_special_tokens=False)["input_ids"]
        if len(own) == 1 and not (expansion and other == placeholder) and bool((ids == own[0]).any()):
            raise VideoError(f"the prompt must not hold {other}: only videos are read, nothing stands behind it")
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if isinstance(settings, PatchSettings):
        out["mm_token_type_ids"] = types
    return out
