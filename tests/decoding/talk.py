"""Conversations with the tiny targets of every family: a tokenizer of single characters, settings for tiny videos."""

from dataclasses import replace

import torch

from sparrow.targets.tiny import TinySize
from sparrow.video import FAMILIES, prepare

SIZES = TinySize()
MARKS = {
    "<|image_pad|>": SIZES.image_token_id, "<image>": SIZES.image_token_id, "<|video_pad|>": SIZES.video_token_id,
    "<video>": SIZES.video_token_id, "<IMG_CONTEXT>": SIZES.video_token_id,
    "<|vision_start|>": SIZES.vision_start_token_id, "<img>": SIZES.vision_start_token_id,
    "<|vision_end|>": SIZES.vision_end_token_id, "</img>": SIZES.vision_end_token_id,
}  # fmt: skip
PRIVATE = 0x100  # chr(PRIVATE + i) is token i: what a model says comes back as the same tokens


class Characters:
    """One token per character. trim: its template changes answers, so that they come back as other tokens."""

    bos_token = None

    def __init__(self, family: str, trim: bool = False):
        self.family, self.trim = family, trim

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = []
        while text:
            mark = next((m for m in MARKS if text.startswith(m)), None)
            if mark is None:
                ids.append(ord(text[0]) - PRIVATE if ord(text[0]) >= PRIVATE else 3 + ord(text[0]) % 250)
            else:
                ids.append(MARKS[mark])
            text = text[len(mark or "x") :]
        return {"input_ids": ids}

    def decode(self, ids, skip_special_tokens: bool = False) -> str:
        return "".join(chr(PRIVATE + i) for i in ids.tolist() if 2 < i < 290)

    def apply_chat_template(self, messages, tokenize=False, add_generation_prompt=True, chat_template=None) -> str:
        video = "<|vision_start|><|video_pad|><|vision_end|>" if self.family.startswith("qwen") else "<video>\n"
        out = ""
        for message in messages:
            parts = [video if part["type"] == "video" else part["text"] for part in message["content"]]
            text = "".join(parts)
            if self.trim and message["role"] == "assistant":
                text = "(" + text + ")"
            out += f"[{message['role']}]{text};"
        return out + "[assistant]"


def settings_of(family: str):
    """The family's settings for frames of 56 x 56 pixels (Qwen3-VL: 64 x 64), which are as large as they can be."""
    known = FAMILIES[family]
    if family.startswith("qwen"):
        return replace(known, min_pixels=1, max_pixels=10**6)
    if family == "llava_next_video":
        return replace(known, shortest_edge=56, crop=(56, 56), tokens_per_frame=4)
    return replace(known, size=(56, 56), tokens_per_frame=4)


def frames_of(family: str, seed: int, count: int = 4):
    """uint8 [count, H, W, 3], noise."""
    side = 64 if family == "qwen3_vl" else 56
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator).numpy()


def whole(session, messages=None):
    """The model's inputs for the conversation up to its last answer, prepared from nothing."""
    messages = session.messages[:-1] if messages is None else messages
    return prepare(session.settings, session.tokenizer, messages, [(clip.frames, clip.info) for clip in session.clips])
