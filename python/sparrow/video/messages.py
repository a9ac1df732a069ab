"""Prompts and chat messages: checked part by part, their videos and images found, rendered with nothing lost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparrow.video.images import is_pillow
from sparrow.video.info import VideoError
from sparrow.video.load import is_clip
from sparrow.video.options import IMAGE_OPTIONS, OPTIONS, VideoOptions, read_options
from sparrow.video.paths import to_path

Message = Mapping[str, Any]
# where a part may name its source, and the type that goes with each
SOURCES = {
    "video": {"video": "video", "path": "video", "url": "video", "video_url": "video_url"},
    "image": {"image": "image", "path": "image", "url": "image", "base64": "image", "image_url": "image_url"},
}
# the medium of each type of part
MEDIA = {kind: medium for medium, sources in SOURCES.items() for kind in sources.values()}
# of the answer to a tool call; a template without a place for them goes by the order
PAIRING = ("tool_call_id", "name")


@dataclass(frozen=True)
class MediaPart:
    """One video or image of the messages.

    Attributes:
        medium: "video" or "image".
        source: what names it; None = nothing does.
        options: what is asked of it.
    """

    medium: str
    source: Any = None
    options: VideoOptions = field(default_factory=VideoOptions)


def read_prompt(
    prompt: Any, given: Mapping[str, Any], tokens: Mapping[str, str], others: list[str]
) -> tuple[list[dict] | None, list[MediaPart]]:
    """(messages, None where the prompt is ready-made text; the videos and images, each kind in order).

    Args:
        prompt: see prepare.
        given: medium -> prepare's videos or images.
        tokens: medium -> the text that stands for one.
        others: all other texts that stand for pixels or sound, which a prompt must not hold.

    Raises:
        VideoError: prompt, videos and images do not fit together; see read_messages.
    """
    listed = {medium: None if sources is None else _sources(sources, medium) for medium, sources in given.items()}
    if isinstance(prompt, str):
        parts = [
            MediaPart(medium, source, VideoOptions(where=f"{medium} {i}"))
            for medium in ("image", "video")
            for i, source in enumerate(listed[medium] or [])
        ]
        if any(token in prompt for token in tokens.values()):
            return None, parts
        content = [{"type": part.medium} for part in parts] + [{"type": "text", "text": prompt}]
        return read_messages([{"role": "user", "content": content}], others)[0], parts
    messages, parts = read_messages(prompt, [*tokens.values(), *others])
    for medium, sources in listed.items():
        own = [part for part in parts if part.medium == medium]
        if sources is None:
            for part in own:
                if part.source is None:
                    raise VideoError(
                        f"{part.options.where}: {medium}s must be given, or named in the messages as "
                        f"{{'type': '{medium}', '{medium}': source}}"
                    )
        elif len(sources) != len(own):
            raise VideoError(unequal(tokens[medium], medium, len(own), len(sources)))
        else:
            named = iter(sources)
            parts = [_replaced(part, next(named)) if part.medium == medium else part for part in parts]
    return messages, parts


def unequal(token: str, medium: str, found: int, given: int) -> str:
    """What is wrong where a prompt has not one placeholder for each video or image."""
    return f"the prompt must have one {token} per {medium}, got {found} for {given} {medium}s"


def read_messages(messages: Sequence[Message], placeholders: Sequence[str]) -> tuple[list[dict], list[MediaPart]]:
    """The messages as a chat template takes them, and their videos and images in order.

    Entries that are None count as absent, as in transformers.

    Args:
        messages: mappings with a role and, as content, text or parts: {"type": "text", "text": text}, {"type": "video",
            "video": source, options}, {"type": "video_url", "video_url": {"url": address}, options}, and the same with
            "image" for "video".
        placeholders: the texts that stand for pixels, which no message may hold.

    Raises:
        VideoError: anything that would not be obeyed: sound, unknown parts and entries, placeholders.
    """
    if isinstance(messages, Mapping) or not isinstance(messages, (list, tuple)):
        raise VideoError(f"prompt must be text or a list of messages, got {type(messages).__name__}")
    if not messages:
        raise VideoError("prompt must have at least one message, got an empty list")
    read, media = [], []
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
        media += found
    return read, media


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


def _replaced(part: MediaPart, source: Any) -> MediaPart:
    """The part with the source from `videos` or `images`, which must not be another file than the part names."""
    paths = [value for value in (part.source, source) if isinstance(value, (str, Path))]
    if len(paths) == 2 and paths[0] != paths[1] and _place(paths[0], part.medium) != _place(paths[1], part.medium):
        raise VideoError(
            f"{part.options.where} names {str(paths[0])!r}, {part.medium}s has {str(paths[1])!r} in its place"
        )
    return MediaPart(part.medium, source, part.options)


def _place(source: str | Path, medium: str) -> str | Path:
    return source if str(source).lower().startswith("data:") else to_path(source, what=medium)


def _sources(given: Any, medium: str) -> list[Any]:
    """The videos or images given, one by one."""
    if isinstance(given, (str, Path, np.ndarray, torch.Tensor)) or is_clip(given) or is_pillow(given):
        return [given]
    if not isinstance(given, (list, tuple)):
        raise VideoError(f"{medium}s must be a sequence of sources, got {type(given).__name__}")
    frames = medium == "video" and all(isinstance(v, (np.ndarray, torch.Tensor)) and v.ndim == 3 for v in given)
    # a list of single frames: one video
    return [given] if given and frames else list(given)


def _content(message: Message, where: str) -> tuple[str | list[dict], list[MediaPart]]:
    content = message["content"]
    if isinstance(content, str):
        return content, []
    if content is None and message.get("tool_calls"):
        return "", []
    if not isinstance(content, (list, tuple)):
        only = "; None goes with tool_calls only" if content is None else ""
        raise VideoError(f"{where}: content must be text or a list of parts, got {_shown(content)}{only}")
    parts, media = [], []
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
            parts.append({"type": MEDIA[kind]})
            media.append(_medium(part, kind, at))
    return parts, media


def _kind(part: Mapping[str, Any], where: str) -> str:
    """The part's type, or the one its entries imply."""
    implied = [kind for key, kind in {"text": "text", **SOURCES["image"], **SOURCES["video"]}.items() if key in part]
    kind = part.get("type", implied[0] if implied else None)
    if kind != "text" and (not isinstance(kind, str) or kind not in MEDIA):
        asked = f"type {_shown(kind)}" if kind is not None else f"entries {_shown(list(part))} without a type"
        raise VideoError(f"{where}: only text, videos and images are read, no sound or others, got {asked}")
    return kind


def _medium(part: Mapping[str, Any], kind: str, where: str) -> MediaPart:
    medium = MEDIA[kind]
    sources, options = SOURCES[medium], OPTIONS if medium == "video" else IMAGE_OPTIONS
    named = [key for key in sources if key in part]
    if len(named) > 1:
        raise VideoError(
            f"{where}: {'an' if medium == 'image' else 'a'} {medium} must be named once, got {' and '.join(named)}"
        )
    if any(sources[key] != kind for key in named):
        raise VideoError(f"{where}: a part of type {kind} must not have {named[0]}")
    _check_keys(part, ("type", *sources, *options), where)
    source = part[named[0]] if named else None
    if kind == f"{medium}_url":
        if isinstance(source, Mapping):
            _check_keys(source, ("url",), f"{where}, {kind}")
            source = source.get("url")
        if not isinstance(source, str):
            raise VideoError(f"{where}: {kind} must have a url, got {_shown(source)}")
    if named == ["base64"]:
        if not isinstance(source, str):
            raise VideoError(f"{where}: base64 must be text, got {_shown(source)}")
        source = f"data:image;base64,{source}"
    return MediaPart(medium, source, read_options(part, where))


def _check_keys(part: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = [key for key in part if key not in known]
    if unknown:
        raise VideoError(f"{where}: {_shown(unknown[0])} is not known here, only {', '.join(known)}")


def _check_text(texts: list[str], placeholders: Sequence[str], where: str) -> None:
    for text in texts:
        for placeholder in placeholders:
            if placeholder in text:
                raise VideoError(
                    f"{where}: a text must not hold {placeholder}, which stands for pixels; videos and images are parts"
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
