"""Batches of synthetic clips for the miniature target: exactly the inputs the product's own path makes."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparrow.miniature.recipe import TargetRecipe
from sparrow.miniature.world import FORMATS, Clip, Format, Scene, sample, visual_tokens
from sparrow.miniature.world.clips import TOKEN_FRAMES, TOKEN_SIDE
from sparrow.miniature.world.render import render
from sparrow.miniature.world.scene import COLOURS, DIRECTIONS, KINDS, MAX_SHAPES, SIZES
from sparrow.video import PatchSettings, patch_pixels

IGNORE = -100
LOOKS = {"colour": len(COLOURS), "kind": len(KINDS), "size": len(SIZES)}
STORY = {**LOOKS, "order": MAX_SHAPES, "direction": len(DIRECTIONS) + 1, "enters": 10}
TEXT_STEP = 32  # padded text lengths are multiples of it


@dataclass
class Batch:
    """Clips of one format.

    Attributes:
        clips: B of them.
        input_ids, labels: int64 [B, S], labels IGNORE outside the answer; positions: int64 [3, B, S].
        pixels: float32 [patches, 3 * 2 * 8 * 8]; grid: int64 [B, 3].
        looks: what covers each visual token, int64 [B * visual, len(STORY)], 0 = the ground.
    """

    clips: list[Clip]
    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    pixels: Tensor
    grid: Tensor
    looks: Tensor


class Collator:
    """Clips to batches for one model and tokenizer.

    Args:
        model: gives get_rope_index and the placeholder's id.
        tokenizer: renders prompts through its chat template.
        settings: of the frames.
    """

    def __init__(self, model: Any, tokenizer, settings: PatchSettings):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.video_token = int(model.config.video_token_id)
        self.end = int(tokenizer.eos_token_id)
        self._prompts: dict[tuple[str, int], list[int]] = {}

    def prompt_ids(self, prompt: str, visual: int) -> list[int]:
        """The prompt's tokens with the placeholder repeated for each visual token."""
        if (prompt, visual) not in self._prompts:
            content = [{"type": "video"}, {"type": "text", "text": prompt}]
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            ids = self.tokenizer(text)["input_ids"]
            at = ids.index(self.video_token)
            self._prompts[prompt, visual] = ids[:at] + [self.video_token] * visual + ids[at + 1 :]
        return self._prompts[prompt, visual]

    def batch(self, clips: list[Clip], form: Format, looks: bool = True) -> Batch:
        visual = visual_tokens(form)
        prompts = [self.prompt_ids(clip.prompt, visual) for clip in clips]
        answers = [[*self.tokenizer(clip.answer)["input_ids"], self.end] for clip in clips]
        text = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) - visual
        size = visual + -(-text // TEXT_STEP) * TEXT_STEP
        ids = torch.full((len(clips), size), int(self.tokenizer.pad_token_id))
        labels = torch.full_like(ids, IGNORE)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            stop = len(prompt) + len(answer)
            ids[row, :stop] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : stop] = torch.tensor(answer)
        patches = [patch_pixels(clip.frames, self.settings) for clip in clips]
        grid = torch.cat([g for _, g in patches])
        seconds = torch.tensor([self.settings.temporal_patch_size / clip.fps for clip in clips])
        positions, _ = self.model.model.get_rope_index(
            ids, (ids == self.video_token).int() * 2, video_grid_thw=grid, second_per_grid_ts=seconds
        )
        stories = torch.cat([token_stories(clip.scene, form) for clip in clips]) if looks else torch.empty(0)
        return Batch(clips, ids, labels, positions, torch.cat([p for p, _ in patches]), grid, stories)


def training_batch(collator: Collator, recipe: TargetRecipe, step: int) -> Batch:
    """The batch of a step: clips of one format, answers of like length, a function of seed and step only."""
    rng = random.Random(f"{recipe.seed} {step}")
    stage = recipe.stage(step)
    length = rng.choices(stage.lengths, stage.weights)[0]
    form = rng.choice(FORMATS[length])
    # rows of like length: draw texts for many, keep a run of neighbours
    room = recipe.batch_tokens // (length + 160)
    kinds = ["describe" if rng.random() < 0.75 else None] * 1
    seeds = [rng.randrange(2**40) for _ in range(max(1, room) * (3 if length <= 512 else 1))]
    shapes = [rng.randint(1, stage.max_shapes) for _ in seeds]
    tiny = Format(1, 8)  # text first, pictures for those that are kept
    texts = [sample(s, tiny, split="train", kind=kinds[0], num_shapes=n) for s, n in zip(seeds, shapes, strict=True)]
    order = sorted(range(len(seeds)), key=lambda i: len(texts[i].answer))
    start = rng.randrange(max(1, len(order)))
    kept: list[int] = []
    longest = 0
    for i in order[start:] + order[:start][::-1]:
        words = len(collator.tokenizer(texts[i].answer)["input_ids"]) + 48
        longest = max(longest, words)
        if kept and (len(kept) + 1) * (length + -(-longest // TEXT_STEP) * TEXT_STEP) > recipe.batch_tokens:
            break
        kept.append(i)
    clips = [_with_frames(texts[i], form, seeds[i], rng) for i in kept]
    return collator.batch(clips, form)


def _with_frames(clip: Clip, form: Format, seed: int, rng: random.Random) -> Clip:
    frames = render(clip.scene, form.frames, form.side, seed=seed % 2**32)
    if rng.random() < 0.5:
        frames = _as_in_a_file(frames)
    return Clip(clip.scene, frames, form.frames / clip.scene.seconds, clip.kind, clip.prompt, clip.answer)


def _as_in_a_file(frames: np.ndarray) -> np.ndarray:
    """What a 4:2:0 video file does to colours: one value for 2 x 2 pixels."""
    x = frames.astype(np.float32)
    luma = x @ np.array([0.299, 0.587, 0.114], np.float32)
    t, h, w = luma.shape
    chroma = (x - luma[..., None]).reshape(t, h // 2, 2, w // 2, 2, 3).mean((2, 4))
    return (luma[..., None] + chroma.repeat(2, 1).repeat(2, 2)).clip(0, 255).astype(np.uint8)


def token_stories(scene: Scene, form: Format) -> Tensor:
    """For each visual token the shape that covers it: int64 [visual, len(STORY)], counted from 1, 0 = the ground."""
    _, owner = render(scene, form.frames, form.side, owner=True)
    t, n = form.frames // TOKEN_FRAMES, form.side // TOKEN_SIDE
    blocks = owner.reshape(t, TOKEN_FRAMES, n, TOKEN_SIDE, n, TOKEN_SIDE)
    count = np.stack([(blocks == i + 1).sum((1, 3, 5)) for i in range(len(scene.shapes))])
    best = np.where(count.max(0) > 24, count.argmax(0) + 1, 0)
    second = (np.arange(t) * TOKEN_FRAMES + 1) * scene.seconds / form.frames
    table = np.zeros((t, len(scene.shapes) + 1, len(STORY)), np.int64)
    for i, shape in enumerate(scene.shapes):
        way = 0 if shape.direction is None else 1 + list(DIRECTIONS).index(shape.direction)
        row = [list(COLOURS).index(shape.colour), KINDS.index(shape.kind), list(SIZES).index(shape.size), i, way,
               shape.enters]  # fmt: skip
        table[:, i + 1] = 1 + np.array(row)
        if shape.turns:
            table[second >= shape.turns[0], i + 1, 0] = 1 + list(COLOURS).index(shape.turns[1])
    return torch.from_numpy(table[np.arange(t)[:, None, None], best].reshape(-1, len(STORY)))
