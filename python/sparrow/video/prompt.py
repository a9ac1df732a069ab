"""Prompt, videos and images to the arguments of `model.generate`: pixels, grids, clocks, and the text around them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparrow.video.arrays import check_frames
from sparrow.video.image_pixels import image_pixels
from sparrow.video.image_settings import PatchImages
from sparrow.video.images import read_image
from sparrow.video.info import ASSUMED_FPS, Progress, VideoError, VideoInfo
from sparrow.video.load import Source, has_clock, is_clip, load_video
from sparrow.video.messages import MediaPart, Message, read_prompt, render, unequal
from sparrow.video.pixels import Memo, frame_pixels, once, patch_pixels
from sparrow.video.placeholders import context_token, media_in, placeholders, tokenized
from sparrow.video.settings import FAMILIES, FrameSettings, PatchSettings

Clip = tuple[np.ndarray, VideoInfo]
Settings = PatchSettings | FrameSettings


def prepare(
    settings: Settings | str,
    tokenizer: Any,
    prompt: str | Sequence[Message],
    videos: Sequence[Source | Clip] | Source | None = None,
    *,
    images: Sequence[Any] | Any | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
    on_damage: str = "raise",
    memo: Memo | None = None,
) -> dict[str, Tensor]:
    """Builds what `model.generate(**inputs)` takes, batch 1, with the bits of the family's transformers processor.

    Args:
        settings: of the checkpoint (`load_settings`), or a family's name for its defaults.
        tokenizer: called as `tokenizer(text, add_special_tokens=...)["input_ids"]`; its `apply_chat_template` renders
            messages.
        prompt: chat messages; or a question, put after the images and then the videos in one user message; or, if it
            contains a placeholder of either, text that went through the chat template already. A video part of a
            message names its source, {"type": "video", "video": source}, and may have the options of VideoOptions,
            which go before num_frames and fps; an image part likewise, {"type": "image", "image": source}, with those
            of IMAGE_OPTIONS. Whatever a message holds is obeyed or refused.
        videos: one source per placeholder in order, or the pairs that load_video returns. None = those named in the
            messages.
        images: one source per placeholder in order, see read_image: a path, a PIL image, an array uint8 [H, W, 3].
            None = those named in the messages.
        num_frames: frames per video, see load_video.
        fps: frames per second, see load_video.
        progress: see load_video.
        device: where the tensors go; None = the CPU.
        on_damage: see load_video; what "skip" leaves out is told in a UserWarning.
        memo: where pixels are kept, and found when the same arrays come again, unchanged.

    Returns:
        input_ids, attention_mask int64 [1, P]; Qwen: mm_token_type_ids int64 [1, P]. With videos, Qwen:
        pixel_values_videos and video_grid_thw (see patch_pixels), Qwen2.5-VL also second_per_grid_ts float32 [videos];
        LLaVA: pixel_values_videos float32 [videos, T, 3, H, W]. With images, Qwen: pixel_values and image_grid_thw;
        LLaVA: pixel_values float32 [images, tiles, 3, H, W] and image_sizes int64 [images, 2], LLaVA-OneVision also
        batch_num_images int64 [1]. InternVL: pixel_values float32 [frames and tiles in order, 3, H, W].

    Raises:
        FileNotFoundError: a video or an image does not exist.
        VideoError: one cannot be read, or prompt, tokenizer, videos, images and device do not fit together.
    """
    settings, place = _settings(settings), _device(device)
    if not callable(tokenizer):
        raise VideoError(f"tokenizer must be a tokenizer, got {type(tokenizer).__name__}")
    tokens, others = placeholders(settings.family, tokenizer)
    messages, parts = read_prompt(prompt, {"video": videos, "image": images}, tokens, others)
    text = str(prompt) if messages is None else render(messages, tokenizer, settings.chat_template)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise VideoError(f"the prompt must be text that UTF-8 can hold: {error}") from error
    order = media_in(text, tokens)
    of = {medium: [part for part in parts if part.medium == medium] for medium in tokens}
    for medium, token in tokens.items():
        if order.count(medium) != len(of[medium]):
            raise VideoError(unequal(token, medium, order.count(medium), len(of[medium])))
    for part in parts:
        part.options.check_family(settings)
    clips = [_clip(part, settings, num_frames, fps, progress, on_damage) for part in of["video"]]
    seen = {
        "image": _images(settings, tokenizer, of["image"], tokens["image"], memo),
        "video": _videos(settings, tokenizer, of["video"], clips, tokens["video"], memo),
    }
    grown = {medium: pixels.texts for medium, pixels in seen.items()}
    inputs = tokenized(settings.family, tokenizer, text, tokens, others, grown)
    inputs |= seen["image"].inputs | seen["video"].inputs | _interleaved(seen, order)
    return inputs if place is None else {name: value.to(place) for name, value in inputs.items()}


def decoded(
    settings: Settings, tokenizer: Any, messages: Sequence[Message], num_frames: int | None, fps: float | None
) -> tuple[list[dict], list[Clip], list[np.ndarray]]:
    """Chat messages for an engine that makes pixels by itself: what `prepare` reads of them, before it makes pixels.

    Returns:
        The messages as a chat template takes them; their videos, as load_video returns them, and images, in order.

    Raises:
        FileNotFoundError, VideoError: as prepare. VideoError: a part asks for a size, which is the engine's to choose.
    """
    tokens, others = placeholders(settings.family, tokenizer)
    read, parts = read_prompt(list(messages), {"video": None, "image": None}, tokens, others)
    assert read is not None
    for part in parts:
        part.options.check_family(settings)
        part.options.check_unsized()
    clips = [_clip(p, settings, num_frames, fps, None, "raise") for p in parts if p.medium == "video"]
    images = [read_image(p.source, p.options.where) for p in parts if p.medium == "image"]
    return read, clips, images


@dataclass(frozen=True)
class _Seen:
    """The prompt's images, or its videos.

    Attributes:
        inputs: the model's arguments.
        texts: what takes the place of each placeholder.
        frames: InternVL, which takes images and videos in one tensor: float32 [frames or tiles, 3, H, W] of each.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)


def _interleaved(seen: dict[str, _Seen], order: list[str]) -> dict[str, Tensor]:
    """InternVL: the tensor of all frames and tiles in the prompt's order."""
    queues = {medium: iter(pixels.frames) for medium, pixels in seen.items() if pixels.frames}
    return {"pixel_values": torch.cat([next(queues[medium]) for medium in order])} if queues else {}


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
    part: MediaPart, settings: Settings, num_frames: int | None, fps: float | None, progress: Any, on_damage: str
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


def _images(settings: Settings, tokenizer: Any, parts: list[MediaPart], token: str, memo: Memo | None) -> _Seen:
    if not parts:
        return _Seen()
    own = settings.image
    if isinstance(own, str):
        raise VideoError(f"{parts[0].options.where}: no images can be read: {own}")
    pictures = [read_image(part.source, part.options.where) for part in parts]
    sizes = [
        part.options.image_size(picture.shape, own) if isinstance(own, PatchImages) else None
        for part, picture in zip(parts, pictures, strict=True)
    ]
    pixels = image_pixels(pictures, own, sizes, memo)
    if settings.family == "internvl":
        texts = [_between_marks(tokenizer, count) for count in pixels.tokens]
    else:
        texts = [token * count for count in pixels.tokens]
    return _Seen(pixels.inputs, texts, pixels.tiles)


def _videos(
    settings: Settings, tokenizer: Any, parts: list[MediaPart], clips: list[Clip], token: str, memo: Memo | None
) -> _Seen:
    if not clips:
        return _Seen()
    if isinstance(settings, PatchSettings):
        sizes = [
            part.options.frame_size(frames.shape, settings) for part, (frames, _) in zip(parts, clips, strict=True)
        ]
        made = [once(memo, patch_pixels, f, settings, size) for (f, _), size in zip(clips, sizes, strict=True)]
        pixels, grids = zip(*made, strict=True)
        inputs = {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.cat(grids)}
        if settings.family == "qwen2_5_vl":
            seconds = [settings.temporal_patch_size / info.sampled_fps for _, info in clips]
            inputs["second_per_grid_ts"] = torch.tensor(seconds, dtype=torch.float32)
        texts = [
            _patch_text(settings, tokenizer, token, grid[0].tolist(), info)
            for grid, (_, info) in zip(grids, clips, strict=True)
        ]
        return _Seen(inputs, texts)
    counts = [len(frames) for frames, _ in clips]
    if len(set(counts)) > 1:
        raise VideoError(
            f"{settings.family} takes videos of equal frame count in one prompt, got {counts}: pass num_frames"
        )
    frames = [once(memo, frame_pixels, frames, settings) for frames, _ in clips]
    if settings.family == "internvl":
        return _Seen(texts=[_numbered(settings, tokenizer, count) for count in counts], frames=frames)
    # LLaVA-OneVision ends a video with one newline embedding
    newline = settings.family == "llava_onevision"
    texts = [token * (count * settings.tokens_per_frame + newline) for count in counts]
    return _Seen({"pixel_values_videos": torch.stack(frames)}, texts)


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
    frame = _between_marks(tokenizer, settings.tokens_per_frame)
    return "\n".join(f"Frame{i + 1}: {frame}" for i in range(count))


def _between_marks(tokenizer: Any, count: int) -> str:
    """InternVL: the placeholders of a frame or an image."""
    start = getattr(tokenizer, "start_image_token", "<img>")
    end = getattr(tokenizer, "end_image_token", "</img>")
    return f"{start}{context_token(tokenizer) * count}{end}"
