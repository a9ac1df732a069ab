"""Training the miniature target on the synthetic world, from nothing.

Three things make it learn to watch within an hour on one core: a small rotary base, dense auxiliary losses (what covers
this visual token?) on the vision tower's output and on the middle layer, and a curriculum from one shape to four and from
short clips to long ones.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparrow.synthetic import FORMATS, Clip, Format, sample, visual_tokens
from sparrow.synthetic.clips import TOKEN_FRAMES, TOKEN_SIDE
from sparrow.synthetic.render import render
from sparrow.synthetic.world import COLOURS, DIRECTIONS, KINDS, MAX_SHAPES, SIZES, Scene
from sparrow.training.run import Run, learning_rate
from sparrow.training.watching import watch
from sparrow.video import PatchSettings, patch_pixels

Report = Callable[[str], None]
IGNORE = -100
LOOKS = {"colour": len(COLOURS), "kind": len(KINDS), "size": len(SIZES)}
STORY = {**LOOKS, "order": MAX_SHAPES, "direction": len(DIRECTIONS) + 1, "enters": 10}
TEXT_STEP = 32  # padded text lengths are multiples of it


@dataclass(frozen=True)
class Stage:
    """Part of the curriculum.

    Attributes:
        until: share of the run's steps at which it ends.
        max_shapes: shapes a scene may have.
        lengths, weights: visual lengths (keys of FORMATS) and how often a batch has each.
    """

    until: float
    max_shapes: int
    lengths: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if len(self.lengths) != len(self.weights) or not self.lengths:
            raise ValueError(f"lengths and weights must pair up, got {len(self.lengths)} and {len(self.weights)}")
        if unknown := [n for n in self.lengths if n not in FORMATS]:
            raise ValueError(f"lengths must be among {', '.join(map(str, FORMATS))}, got {unknown[0]}")
        if not 1 <= self.max_shapes <= MAX_SHAPES:
            raise ValueError(f"max_shapes must lie in [1, {MAX_SHAPES}], got {self.max_shapes}")


CURRICULUM = (
    Stage(0.08, 1, (64,), (1.0,)),
    Stage(0.20, 2, (64, 128), (0.7, 0.3)),
    Stage(0.60, 4, (64, 128, 256), (0.5, 0.3, 0.2)),
    Stage(0.90, 4, (64, 128, 256, 512, 1024), (0.38, 0.22, 0.2, 0.12, 0.08)),
    Stage(1.00, 4, (64, 128, 256, 512, 1024, 2048, 4096), (0.3, 0.15, 0.15, 0.12, 0.12, 0.08, 0.08)),
)


@dataclass(frozen=True)
class TargetRecipe:
    """Settings of `sparrow train target`.

    Attributes:
        seed: of weights and data; steps: optimiser steps.
        batch_tokens: positions per step, padding included.
        optimizer: of the matrices of decoder and tower, "muon" (updates scaled to AdamW's) or "adamw"; the rest, AdamW.
        lr: its peak learning rate; embed_lr: of the rest. warmup: steps; hold: share of the run at the peak.
        weight_decay: of matrices. clip: bound of the gradient's norm.
        auxiliary: weight of the dense losses; they fade out at the share auxiliary_until of the run.
        bf16: autocast.
        evaluate_every, save_every: steps.
        curriculum: stages.
    """

    seed: int = 0
    steps: int = 3000
    batch_tokens: int = 8192
    optimizer: str = "muon"
    lr: float = 3e-3
    embed_lr: float = 2e-3
    warmup: int = 60
    hold: float = 0.3
    weight_decay: float = 0.05
    clip: float = 1.0
    auxiliary: float = 0.3
    auxiliary_until: float = 0.7
    bf16: bool = True
    evaluate_every: int = 250
    save_every: int = 100
    curriculum: tuple[Stage, ...] = field(default=CURRICULUM)

    def __post_init__(self):
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer must be muon or adamw, got {self.optimizer!r}")

    def stage(self, step: int) -> Stage:
        return next((s for s in self.curriculum if step < s.until * self.steps), self.curriculum[-1])


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

    def __init__(self, model: nn.Module, tokenizer, settings: PatchSettings):
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
    texts = [
        sample(s, tiny, split="train", kind=kinds[0], num_shapes=n) for s, n in zip(seeds, shapes, strict=True)
    ]
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


class Probes(nn.Module):
    """Linear readers of the dense labels: looks from the vision tower, the story from a middle layer. Training only."""

    def __init__(self, hidden: int):
        super().__init__()
        self.looks = nn.Linear(hidden, sum(n + 1 for n in LOOKS.values()))
        self.story = nn.Linear(hidden, sum(n + 1 for n in STORY.values()))

    def loss(self, tower: Tensor, middle: Tensor, labels: Tensor) -> Tensor:
        """Sum of cross-entropies; tower, middle [tokens, E]; the ground counts a tenth."""
        return _dense_loss(self.looks(tower), LOOKS, labels) + _dense_loss(self.story(middle), STORY, labels)


def _dense_loss(logits: Tensor, classes: dict[str, int], labels: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for i, part in enumerate(logits.float().split([n + 1 for n in classes.values()], dim=-1)):
        weight = torch.ones(part.shape[-1])
        weight[0] = 0.1
        total = total + F.cross_entropy(part, labels[:, i], weight)
    return total


class Forward:
    """One pass of the model over a batch, with the states the probes read."""

    def __init__(self, model: nn.Module, bf16: bool):
        self.model, self.bf16 = model, bf16
        self.seen: dict[str, Tensor] = {}
        layers = model.model.language_model.layers
        model.model.visual.register_forward_hook(lambda m, a, out: self._see("tower", out.pooler_output))
        layers[len(layers) // 2 - 1].register_forward_hook(
            lambda m, a, out: self._see("middle", out[0] if isinstance(out, tuple) else out)
        )

    def _see(self, name: str, value: Tensor) -> None:
        self.seen[name] = value

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(float32 logits [n, V] of the answers' tokens, their labels [n])."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            states = self.model.model(
                input_ids=batch.input_ids, pixel_values_videos=batch.pixels, video_grid_thw=batch.grid,
                position_ids=batch.positions, use_cache=False,
            ).last_hidden_state  # fmt: skip
            wanted = batch.labels[:, 1:] != IGNORE
            logits = self.model.lm_head(states[:, :-1][wanted])
        return logits.float(), batch.labels[:, 1:][wanted]

    def dense_loss(self, probes: Probes, batch: Batch) -> Tensor:
        visual = batch.input_ids == int(self.model.config.video_token_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return probes.loss(self.seen["tower"], self.seen["middle"][visual], batch.looks)


def optimizers(model: nn.Module, probes: Probes, recipe: TargetRecipe) -> list[torch.optim.Optimizer]:
    """One for the matrices, one for everything else; each group keeps its peak rate under "peak"."""
    matrices, rest = [], list(probes.parameters())
    for name, p in model.named_parameters():
        inner = p.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inner else rest).append(p)
    if recipe.optimizer == "muon":
        first: torch.optim.Optimizer = torch.optim.Muon(
            matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    else:
        first = torch.optim.AdamW(matrices, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    second = torch.optim.AdamW(rest, lr=recipe.embed_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for group, peak in ((first.param_groups[0], recipe.lr), (second.param_groups[0], recipe.embed_lr)):
        group["peak"] = peak
    return [first, second]


def train_target(model: nn.Module, collator: Collator, recipe: TargetRecipe, run: Run, report: Report) -> None:
    """Trains until recipe.steps, from the run's last checkpoint where it has one.

    Args:
        model: built by targets.miniature, inside `trainable`.
        collator: of the same model.
        run: its folder; gets log lines, curves and checkpoints.
        report: called with a line of text now and then.
    """
    torch.manual_seed(recipe.seed)
    probes = Probes(int(model.config.get_text_config().hidden_size))
    steppers, forward = optimizers(model, probes, recipe), Forward(model, recipe.bf16)
    parameters = [*model.parameters(), *probes.parameters()]
    start = 0
    if (state := run.load()) is not None:
        start = state["step"]
        model.load_state_dict(state["model"])
        probes.load_state_dict(state["probes"])
        for optimizer, saved in zip(steppers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        report(f"going on from step {start}")
    model.train()
    began = time.monotonic()
    for step in range(start, recipe.steps):
        values = _step(model, collator, recipe, step, probes, steppers, forward, parameters)
        run.log(step=step, **values)
        done = step + 1
        if done % 50 == 0:
            pace = (time.monotonic() - began) / (done - start)
            report(f"step {done} of {recipe.steps}, {pace:.2f} s each: {values}")
        if done % recipe.evaluate_every == 0 or done == recipe.steps:
            scores = watch(model, collator, forward)
            run.log(step=step, **scores)
            report(f"step {done}: {scores}")
            run.curves("loss", "dense_loss", "true", "shuffled")
        if done % recipe.save_every == 0 or done == recipe.steps:
            run.save(
                step=done, model=model.state_dict(), probes=probes.state_dict(),
                optimizers=[o.state_dict() for o in steppers],
            )  # fmt: skip
    model.eval()


def _step(model, collator, recipe, step, probes, steppers, forward, parameters) -> dict[str, float]:
    batch = training_batch(collator, recipe, step)
    rate = learning_rate(step, recipe.steps, 1.0, recipe.warmup, hold=recipe.hold)
    for optimizer in steppers:
        optimizer.param_groups[0]["lr"] = rate * optimizer.param_groups[0]["peak"]
    logits, labels = forward(batch)
    loss = F.cross_entropy(logits, labels)
    fade = recipe.auxiliary * max(0.0, 1 - step / (recipe.auxiliary_until * recipe.steps))
    dense = forward.dense_loss(probes, batch) if fade else torch.zeros(())
    (loss + fade * dense).backward()
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
    for optimizer in steppers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
    return {
        "loss": round(loss.item(), 4), "dense_loss": round(dense.item(), 4), "norm": round(float(norm), 3),
        "visual": int((batch.input_ids[0] == collator.video_token).sum()), "clips": len(batch.clips),
    }  # fmt: skip
