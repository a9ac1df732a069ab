"""The texts that stand for pixels in a prompt: which they are, what they grow into, and their token ids."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparrow.video.info import VideoError

TYPES = {"image": 1, "video": 2}  # in mm_token_type_ids


def placeholders(family: str, tokenizer: Any) -> tuple[dict[str, str], list[str]]:
    """(medium -> the text that stands for one video or image, all others that stand for pixels or sound)."""
    qwen = family.startswith("qwen")
    video = getattr(tokenizer, "video_token", None) or ("<|video_pad|>" if qwen else "<video>")
    named = getattr(tokenizer, "image_token", None) or ("<|image_pad|>" if qwen else "<image>")
    image = context_token(tokenizer) if family == "internvl" else named
    others = [named, getattr(tokenizer, "audio_token", None)]
    return {"image": image, "video": video}, [o for o in dict.fromkeys(others) if o and o not in (video, image)]


def context_token(tokenizer: Any) -> str:
    """InternVL's token of one feature, of an image or of a frame."""
    return getattr(tokenizer, "context_image_token", "<IMG_CONTEXT>")


def media_in(text: str, tokens: Mapping[str, str]) -> list[str]:
    """The media of a prompt in the order of their placeholders."""
    return [found.lastgroup or "" for found in _pattern(tokens).finditer(text)]


def tokenized(
    family: str, tokenizer: Any, text: str, tokens: Mapping[str, str], others: list[str], grown: Mapping[str, list[str]]
) -> dict[str, Tensor]:
    """Token ids with every placeholder checked to be one known id, and no other placeholder among them.

    Args:
        family: of the model.
        tokenizer: see prepare.
        text: the rendered prompt, one placeholder for each video and image.
        tokens: medium -> its placeholder.
        others: texts that must not be there.
        grown: medium -> what takes the place of each placeholder.

    Returns:
        input_ids and attention_mask int64 [1, P]; Qwen: mm_token_type_ids int64 [1, P].
    """
    queues = {medium: iter(texts) for medium, texts in grown.items()}
    text = _pattern(tokens).sub(lambda found: next(queues[found.lastgroup or ""]), text)
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos and text.startswith(bos))
    ids = torch.tensor([tokenizer(text, add_special_tokens=special)["input_ids"]], dtype=torch.int64)
    types, features = torch.zeros_like(ids), _features(family, tokenizer, tokens, grown)
    for token, (medium, expected) in features.items():
        own = _ids(tokenizer, token)
        if len(own) != 1:
            raise VideoError(f"the tokenizer must know {token} as one token, it makes {len(own)} of it")
        is_feature = ids == own[0]
        if (found := int(is_feature.sum())) != expected:
            raise VideoError(f"the prompt must hold {expected} {token} tokens for its {medium}s, got {found}")
        types[is_feature] = TYPES[medium]
    for other in others:
        own = _ids(tokenizer, other)
        if other not in features and len(own) == 1 and bool((ids == own[0]).any()):
            raise VideoError(f"the prompt must not hold {other}: nothing stands behind it")
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return out | ({"mm_token_type_ids": types} if family.startswith("qwen") else {})


def _features(
    family: str, tokenizer: Any, tokens: Mapping[str, str], grown: Mapping[str, list[str]]
) -> dict[str, tuple[str, int]]:
    """Token of a feature -> (medium, how many there must be), of those that the prompt has."""
    found: dict[str, tuple[str, int]] = {}
    for medium, texts in grown.items():
        token = context_token(tokenizer) if family == "internvl" else tokens[medium]
        if texts:
            # InternVL's is one for both
            found[token] = medium, "".join(texts).count(token) + found.get(token, ("", 0))[1]
    return found


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _pattern(tokens: Mapping[str, str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?P<{medium}>{re.escape(token)})" for medium, token in tokens.items()))
