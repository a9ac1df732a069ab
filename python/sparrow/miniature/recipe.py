"""Settings of the miniature target's training."""

from dataclasses import dataclass, field

from sparrow.miniature.world import FORMATS
from sparrow.miniature.world.scene import MAX_SHAPES


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
    Stage(0.88, 4, (64, 128, 256, 512, 1024), (0.38, 0.22, 0.2, 0.12, 0.08)),
    Stage(1.00, 4, (64, 128, 256, 512, 1024, 2048, 4096), (0.2, 0.1, 0.15, 0.15, 0.16, 0.12, 0.12)),
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
    steps: int = 2000
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
        for name in ("steps", "batch_tokens", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "embed_lr", "clip", "auxiliary_until"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.curriculum or self.curriculum[-1].until < 1:
            raise ValueError("curriculum must have stages, the last one until 1.0")

    def stage(self, step: int) -> Stage:
        return next((s for s in self.curriculum if step < s.until * self.steps), self.curriculum[-1])
