"""Settings of `sparrow train smollm2`."""

from dataclasses import dataclass, field

from sparrow.miniature.recipe import Stage, TargetRecipe

WARM = (Stage(1.0, 4, (64, 128, 256), (0.6, 0.2, 0.2)),)
TEACH = (
    Stage(0.08, 2, (64,), (1.0,)),
    Stage(0.50, 4, (64, 256), (0.92, 0.08)),
    Stage(1.00, 4, (64, 128, 256, 512, 1024), (0.78, 0.05, 0.10, 0.02, 0.05)),
)


@dataclass(frozen=True)
class SmolRecipe:
    """Settings; three stages follow each other: the tower alone, the merger, merger and LoRA.

    Attributes:
        seed: of weights and data.
        warm_steps: of the tower alone, onto the language model's own word embeddings; warm_tokens: positions of a step;
            warm_lr: peak rate.
        merger_steps: the language model frozen; lora_steps: with adapters of rank `rank` on q, k, v and o.
        batch_tokens: positions of a step, padding included.
        bf16: autocast, for a CPU with fast instructions for it (AMD's): there a step takes half the time, on others
            longer, on Intel's without AMX, too.
        merger_lr, lora_lr: peak rates; tower_lr: of the rest of the tower in the last stage, 0 = not trained there;
            warmup: steps; hold: share of a stage at the peak.
        clip: bound of the gradient's norm.
        other_words: weight in the loss of words that need no video; other_share: of them so many are in a step's loss,
            each with more weight.
        cut: share of the descriptions that end before their closing, which repeats shapes already named.
        dense: weight of the loss of linear readers of the middle layer's states at visual tokens (what covers them, as
            which shape in order, since when, which way); it fades to 0 at the share dense_until of the last stage.
        text_every: a step with text comes every so many steps of the last stage; text_rows: of such a step;
            text_weight: of its loss, the divergence from the original model's predictions.
        text_prompts, text_tokens: how many answers, and how long; document_rows: further rows of such a step, from the
            documentation that comes with Python; document_tokens: their length.
        evaluate_every, save_every: steps.
        start: file of an earlier training's result (taught.safetensors) to go on from; with warm_steps=0 and
            merger_steps=0 only the last stage is run.
        warm, teach: curricula, of the first stage and of the other two together.
    """

    seed: int = 0
    warm_steps: int = 125
    warm_tokens: int = 4096
    warm_lr: float = 1e-3
    merger_steps: int = 60
    lora_steps: int = 900
    rank: int = 16
    batch_tokens: int = 1536
    bf16: bool = False
    merger_lr: float = 1e-3
    lora_lr: float = 1e-3
    tower_lr: float = 3e-4
    warmup: int = 5
    hold: float = 0.4
    clip: float = 1.0
    other_words: float = 0.2
    other_share: float = 0.25
    cut: float = 0.7
    dense: float = 0.2
    dense_until: float = 0.7
    text_every: int = 5
    text_rows: int = 4
    text_weight: float = 20.0
    text_prompts: int = 96
    text_tokens: int = 32
    document_rows: int = 2
    document_tokens: int = 192
    evaluate_every: int = 120
    save_every: int = 20
    start: str | None = None
    warm: tuple[Stage, ...] = field(default=WARM)
    teach: tuple[Stage, ...] = field(default=TEACH)

    def __post_init__(self):
        for name in ("warm_steps", "merger_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("lora_steps", "rank", "batch_tokens", "warm_tokens", "text_every", "text_rows", "text_prompts",
                     "text_tokens", "document_tokens", "evaluate_every", "save_every"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warm_lr", "merger_lr", "lora_lr", "clip", "dense_until", "other_share"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("other_words", "text_weight", "tower_lr", "cut", "dense", "document_rows"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def steps(self) -> int:
        """Of all stages."""
        return self.warm_steps + self.merger_steps + self.lora_steps

    def warm_data(self) -> TargetRecipe:
        """What draws the batches of the first stage."""
        return TargetRecipe(self.seed, max(1, self.warm_steps), self.warm_tokens, curriculum=self.warm)

    def teach_data(self) -> TargetRecipe:
        """What draws the batches of the others; another seed, so that no clip comes twice."""
        steps = self.merger_steps + self.lora_steps
        return TargetRecipe(self.seed + 1, steps, self.batch_tokens, curriculum=self.teach)
