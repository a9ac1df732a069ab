"""Prompts and chat messages: checked part by part, their videos found, rendered with nothing lost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparrow.video.info import VideoError
from sparrow.video.load import is_clip
from sparrow.video.options import OPTIONS, VideoOptions, read_options
from sparrow.video.paths import to_path

Message = Mapping[str, Any]
# where a video part may name its source, and the type that goes with each
SOURCES = {"video": "video", "path": "video", "url": "video", "video_url": "video_url"}
# of the answer to a tool call; a template without a place for them goes by the order
PAIRING = ("tool_call_id", "name")


@dataclass(frozen=True)
class VideoPart:
    """One video of the messages: what names it (None = nothing does) and what is asked of it."""

    source: Any = None
    options: VideoOptions = field(default_factory=VideoOptions)


def read_prompt(prompt: Any, videos: Any, token: str, others: list[str]) -> tuple[list[dict] | None, list[VideoPart]]:
    """(messages, None where the prompt is ready-made text; the videos in order).

    Args:
        prompt: see prepare.
        videos: see prepare.
        token: the text that stands for a video.
        others: all other texts that stand for pixels or sound, which a prompt must not hold.

    Raises:
        VideoError: prompt and videos do not fit together; see read_messages.
    """
    given = None if videos is None else _sources(videos)
    if isinstance(prompt, str):
        parts = [VideoPart(source, VideoOptions(where=f"video {i}")) for i, source in enumerate(given or [])]
        if token in prompt:
            return None, parts
        prompt = [{"role": "user", "content": [{"type": "video"}] * len(parts) + [{"type": "text", "text": prompt}]}]
        return read_messages(prompt, others)[0], parts
    messages, parts = read_messages(prompt, [token, *others])
    if given is None:
        for part in parts:
            if part.source is None:
                raise VideoError(
                    f"{part.options.where}: videos must be given, or named in the messages as "
                    "{'type': 'video', 'video': source}"
                )
        return messages, parts
    if len(given) != len(parts):
        raise VideoError(f"the prompt must have one {token} per video, got {len(parts)} for {len(given)} videos")
    return messages, [_replaced(part, source) for part, source in zip(parts, given, strict=True)]


def read_messages(messages: Sequence[Message], placeholders: Sequence[str]) -> tuple[list[dict], list[VideoPart]]:
    """The messages as a chat template takes them, and their videos in order.

    Entries that are None count as absent, as in transformers.

    Args:
        messages: mappings with a role and, as content, text or parts: {"type": "text", "text": text}, {"type": "video",
            "video": source, options} or {"type": "video_url", "video_url": {"url": address}, options}.
        placeholders: the texts that stand for pixels, which no message may hold.

    Raises:
        VideoError: anything that would not be obeyed: pictures, sound, unknown parts and entries, placeholders.
    """
    if isinstance(messages, Mapping) or not isinstance(messages, (list, tuple)):
        raise VideoError(f"prompt must be text or a list of messages, got {type(messages).__name__}")
    if not messages:
        raise VideoError("prompt must have at least one message, got an empty list")
    read, videos = [], []
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise VideoError(f"a message must be a mapping with role and content, got {_shown(message)}")
        present = {key: value for key, value in message.items() if value is not None}
        if not isinstance(present.get("role"), str):
            raise VideoError(f"{where}: role must be text, got {_shown(message['role'])}")
        present["content"], found = _content(message, where)
        _check_text(_texts(present["content"]), placeholders, where)
        read.append(present)
        videos += found
    return read, videos


def render(messages: list[dict], tokenizer: Any, chat_template: str | None) -> str:
    """The messages through the chat template, generation prompt included.

    Raises:
        VideoError: the template fails, or leaves out a text or an entry of a message.
    """
    text = _apply(messages, tokenizer, chat_template)
    if _lost(messages, text) is not None:
        # some templates take parts only and pass over plain text
        messages = [
            m | {"content": [{"type": "text", "text": m["content"]}]} if isinstance(m["content"], str) else m
            for m in messages
        ]
        text = _apply(messages, tokenizer, chat_template)
    if (lost := _lost(messages, text)) is not None:
        raise VideoError(f"message {lost}: the chat template has no place for its text")
    for number, message in enumerate(messages):
        for key in message.keys() - {"role", "content"} - set(PAIRING if message["role"] == "tool" else ()):
            without = [m if m is not message else {k: m[k] for k in m if k != key} for m in messages]
            if message[key] not in ([], {}, "") and _apply(without, tokenizer, chat_template) == text:
                raise VideoError(
                    f"message {number}: the chat template has no place for {key}, got {_shown(message[key])}"
                )
    return text


def _replaced(part: VideoPart, source: Any) -> VideoPart:
    """The part with the source from `videos`, which must not be another file than the part names."""
    paths = [value for value in (part.source, source) if isinstance(value, (str, Path))]
    if len(paths) == 2 and to_path(paths[0]) != to_path(paths[1]):
        raise VideoError(f"{part.options.where} names {str(paths[0])!r}, videos has {str(paths[1])!r} in its place")
    return VideoPart(source, part.options)


def _sources(videos: Any) -> list[Any]:
    """The videos given, one by one."""
    if isinstance(videos, (str, Path, np.ndarray, torch.Tensor)) or is_clip(videos):
        return [videos]
    if not isinstance(videos, (list, tuple)):
        raise VideoError(f"videos must be a sequence of sources, got {type(videos).__name__}")
    if videos and all(isinstance(v, (np.ndarray, torch.Tensor)) and v.ndim == 3 for v in videos):
        # a list of single frames: one video
        return [videos]
    return list(videos)


def _content(message: Message, where: str) -> tuple[str | list[dict], list[VideoPart]]:
    content = message["content"]
    if isinstance(content, str):
        return content, []
    if content is None and message.get("tool_calls"):
        return "", []
    if not isinstance(content, (list, tuple)):
        only = "; None goes with tool_calls only" if content is None else ""
        raise VideoError(f"{where}: content must be text or a list of parts, got {_shown(content)}{only}")
    parts, videos = [], []
    for number, given in enumerate(content):
        at = f"{where}, part {number}"
        if not isinstance(given, Mapping):
            raise VideoError(f"{at}: a part must be a mapping with a type, got {_shown(given)}")
        part = {key: value for key, value in given.items() if value is not None}
        kind = _kind(part, at)
        if kind == "text":
            _check_keys(part, ("type", "text"), at)
            if not isinstance(part.get("text"), str):
                raise VideoError(f"{at}: text must be text, got {_shown(part.get('text'))}")
            parts.append({"type": "text", "text": part["text"]})
        else:
            parts.append({"type": "video"})
            videos.append(_video(part, kind, at))
    return parts, videos


def _kind(part: Mapping[str, Any], where: str) -> str:
    """The part's type, or the one its entries imply."""
    implied = [kind for key, kind in {"text": "text", **SOURCES}.items() if key in part]
    kind = part.get("type", implied[0] if implied else None)
    if kind not in ("text", "video", "video_url"):
        asked = f"type {_shown(kind)}" if kind is not None else f"entries {_shown(list(part))} without a type"
        raise VideoError(f"{where}: only text and videos are read, no pictures, sound or others, got {asked}")
    return kind


def _video(part: Mapping[str, Any], kind: str, where: str) -> VideoPart:
    named = [key for key in SOURCES if key in part]
    if len(named) > 1:
        raise VideoError(f"{where}: a video must be named once, got {' and '.join(named)}")
    if any(SOURCES[key] != kind for key in named):
        raise VideoError(f"{where}: a part of type {kind} must not have {named[0]}")
    _check_keys(part, ("type", *SOURCES, *OPTIONS), where)
    source = part[named[0]] if named else None
    if kind == "video_url" and isinstance(source, Mapping):
        _check_keys(source, ("url",), f"{where}, video_url")
        source = source.get("url")
    if kind == "video_url" and not isinstance(source, str):
        raise VideoError(f"{where}: video_url must have a url, got {_shown(source)}")
    return VideoPart(source, read_options(part, where))


def _check_keys(part: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = [key for key in part if key not in known]
    if unknown:
        raise VideoError(f"{where}: {_shown(unknown[0])} is not known here, only {', '.join(known)}")


def _check_text(texts: list[str], placeholders: Sequence[str], where: str) -> None:
    for text in texts:
        for placeholder in placeholders:
            if placeholder in text:
                raise VideoError(
                    f"{where}: a text must not hold {placeholder}, which stands for pixels; videos are parts"
                )


def _texts(content: str | list[dict]) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _lost(messages: list[dict], rendered: str) -> int | None:
    """Number of the first message with a text that is not in the rendered prompt."""
    for number, message in enumerate(messages):
        for text in _texts(message["content"]):
            # templates trim, leave out earlier thoughts, and may quote what a tool said
            kept = text.rsplit("</think>", 1)[-1].strip()
            quoted = (json.dumps(kept, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
            if kept not in rendered and not any(form in rendered for form in quoted):
                return number
    return None


def _apply(messages: list[dict], tokenizer: Any, chat_template: str | None) -> str:
    options = {} if chat_template is None else {"chat_template": chat_template}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:
        # the template is the checkpoint's own program; what it raises is about these messages
        raise VideoError(f"the chat template cannot take these messages: {type(error).__name__}: {error}") from error
    if not isinstance(text, str):
        raise VideoError(f"apply_chat_template must return text with tokenize=False, got {type(text).__name__}")
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
