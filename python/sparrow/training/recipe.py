"""Every setting of `sparrow train drafter`, with the paper's recipe as defaults (Sparrow, arXiv 2602.15318)."""

from dataclasses import dataclass, field


def _one_of(name: str, value: object, *allowed: object) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class Data:
    """Which clips and questions.

    Attributes:
        clips: JSONL of {"prompt": text, "video": path}, "image": path or "images": [path, ...] beside or without a
            video, or {"messages": [...]}; paths are relative to that file. None = the synthetic world.
        num_frames, fps: frames to sample of a clip of the file; None = the model's rule.
        count, first: the synthetic world's clips are number first, first + 1, ... of its split "train".
        kind: kind of their questions; None = drawn.
        frames, side: their frames, taken in turn, and pixels.
        validation: the last clips are held out of training: their losses and tau are logged.
    """

    clips: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    count: int = 4000
    first: int = 1_000_000
    kind: str | None = None
    frames: tuple[int, ...] = (8,)
    side: int = 64
    validation: int = 32

    def __post_init__(self):
        _at_least("data.count", self.count, 1)
        if not self.frames or min(self.frames) < 1:
            raise ValueError(f"data.frames must be positive numbers, got {list(self.frames)}")
        _at_least("data.validation", self.validation, 0)


@dataclass(frozen=True)
class Answers:
    """The target's own answers (self-distillation).

    Attributes:
        folder: where they are kept, for any number of runs; None = <run>/answers.
        temperatures: each clip is answered once at each; 0 = greedy.
        max_new_tokens: longest answer.
        batch: prompts answered together at most; they are taken by length and padded.
        batch_tokens: of a batch at most, padding and the longest answers included: what its cache takes. A prompt that
            alone has more is answered alone.
        ahead: prompts that may be decoded and wait beside a batch, for the target or for others of their length.
        workers: threads that decode them.
        seed: of the sampling; an answer depends on it and the clip's number, not on its batch.
    """

    folder: str | None = None
    temperatures: tuple[float, ...] = (0.0,)
    max_new_tokens: int = 256
    batch: int = 16
    batch_tokens: int = 16_384
    ahead: int = 32
    workers: int = 2
    seed: int = 0

    def __post_init__(self):
        if not self.temperatures or min(self.temperatures) < 0 or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"answers.temperatures must be distinct numbers >= 0, got {list(self.temperatures)}")
        _at_least("answers.max_new_tokens", self.max_new_tokens, 2)
        for name in ("batch", "batch_tokens", "ahead", "workers"):
            _at_least(f"answers.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class States:
    """The target's states along the answers.

    Attributes:
        cache: True = computed once and kept on disk; False = recomputed whenever a clip is used.
        folder: where they are kept; None = <run>/states.
        dtype: "float32", "bfloat16", "float16"; "target" = the target's own.
        positions: how the target's prompt is numbered, as in sparrow.generate: "hf" or "reference".
        check: so many of the answers, spread over all, have their states computed again and compared with what is kept.
    """

    cache: bool = True
    folder: str | None = None
    dtype: str = "target"
    positions: str = "hf"
    check: int = 2

    def __post_init__(self):
        _at_least("states.check", self.check, 0)
        _one_of("states.dtype", self.dtype, "target", "float32", "bfloat16", "float16")
        _one_of("states.positions", self.positions, "hf", "reference")


@dataclass(frozen=True)
class Shape:
    """What the drafter is; see DrafterConfig.

    Attributes:
        hidden_layer: index into transformers' hidden_states, negative from the end: -1 = after the final norm (what
            the head reads), -2 = the output of the last layer but one (the paper's words).
        fused_layers: further layers whose states are joined to it, [2, 14] say; they need recipe.feature 0.
        hidden_norm: RMSNorm on reused states.
        output_norm: "own", "target" or "none".
        positions: "text", "sequence" or "target".
        num_layers: decoder layers (the paper: 1); more need recipe.visual=false and layer=eagle.
        layer: "eagle", or "eagle3": q, k and v read embedding and state side by side; it sees the video by
            visual=states, or is trained on text alone (recipe.visual=false).
        own_head: a head of its own over the draft vocabulary, at first the target's; False = the target's, frozen.
        visual: what it sees of the video when it drafts: "none", "rows", "compressed", or "states" (of layer=eagle3).
            The last three see what they are trained on: recipe.visual_layer (all papers: 0) and
            visual_positions=before.
        grouped_heads: keys and values are shared by query heads as in the target; False = one of each per query head.
        rope_theta: None = the target's.
        draft_vocab: tokens it may propose, the most frequent of the training answers; 0 = all.
        tree: its default tree.
        start: folder of a drafter of this shape whose weights training goes on from, as to another numbering of
            prompts or to texts of another kind. It may have fewer decoder layers, or no fused ones: what is new
            changes nothing at first. Where draft_vocab asks for more tokens than it may propose, and
            own_head=false, these are chosen anew. None = random weights.
    """

    hidden_layer: int = -1
    fused_layers: tuple[int, ...] = ()
    hidden_norm: bool = True
    output_norm: str = "own"
    num_layers: int = 1
    layer: str = "eagle"
    own_head: bool = False
    positions: str = "text"
    visual: str = "none"
    grouped_heads: bool = True
    rope_theta: float | None = None
    draft_vocab: int = 0
    tree: str = "30-4-8"
    start: str | None = None

    def __post_init__(self):
        _at_least("drafter.draft_vocab", self.draft_vocab, 0)


@dataclass(frozen=True)
class Recipe:
    """How it is trained.

    Attributes:
        visual: True = IVSB: the training sequence holds the target's states at visual positions. False = text only.
        visual_layer: which states, index into hidden_states; None = half of the target's layers (the paper's L/2).
        visual_positions: numbers of visual rows; text rows are always numbered as at inference. "before": running
            numbers that end just before the next text row (below zero for a long video); "same": all of them just
            before the next text row; "target": the target's own ids, last axis (needs drafter.positions=target).
        mtp_depth: passes on own outputs after the first one; the paper's is 1.
        mtp_attention: what rows of a later pass attend to. "paper": rows of the same pass. "tree": as in decoding, rows
            with true states but for the last `pass` ones.
        mtp_decay: weight of each pass relative to the one before.
        noise: width of uniform noise on reused states, in units of each state's RMS: 0.2 adds U(-0.1, 0.1) * RMS.
            (EAGLE, arXiv 2401.15077, adds U(-0.1, 0.1) as it is; relative, it means the same at any scale.)
        cross_entropy: weight of the soft cross-entropy to the target's distribution.
        feature: weight of SmoothL1 between the drafter's output and the state it stands for.
        acceptance: weight of 1 - sum_x min(p, q), the chance that a sampled draft is refused.
        temperature: of the target's distribution p in the losses.
    """

    visual: bool = True
    visual_layer: int | None = None
    visual_positions: str = "before"
    mtp_depth: int = 1
    mtp_attention: str = "paper"
    mtp_decay: float = 1.0
    noise: float = 0.2
    cross_entropy: float = 1.0
    feature: float = 0.1
    acceptance: float = 0.0
    temperature: float = 1.0

    def __post_init__(self):
        _one_of("recipe.visual_positions", self.visual_positions, "before", "same", "target")
        _one_of("recipe.mtp_attention", self.mtp_attention, "paper", "tree")
        for name in ("mtp_depth", "mtp_decay", "noise", "cross_entropy", "feature", "acceptance"):
            _at_least(f"recipe.{name}", getattr(self, name), 0)
        if self.cross_entropy + self.acceptance == 0:
            raise ValueError("recipe.cross_entropy and recipe.acceptance must not both be 0")
        if not self.temperature > 0:
            raise ValueError(f"recipe.temperature must be positive, got {self.temperature}")


@dataclass(frozen=True)
class Optimisation:
    """Steps, batches, optimiser.

    Attributes:
        steps: optimiser steps.
        batch_rows: rows of one batch over all processes, padding included: sequences * (text + visual rows of the
            longest).
        accumulate: batches of a step; their gradients are added up, one batch is in memory at a time.
        checkpointing: what the layer computed is computed again for its gradient, and not kept: less memory, more time.
        optimiser: "adamw"; "muon" = torch.optim.Muon for the matrices, its updates scaled to AdamW's, and AdamW for the
            rest (needs sharding=ddp).
        learning_rate, warmup: peak, and steps up to it; a cosine down to 2 % follows.
        beta1, beta2: AdamW's; weight_decay: of both.
        clip_value: gradients are clipped to [-clip_value, clip_value]; None = not.
        clip_norm: their norm is clipped; None = not.
        autocast: "none" or "bfloat16"; master weights are float32 in any case.
        seed: of the initialisation, the order of the data and the noise.
        workers: processes that read states ahead.
        log_every, validate_every, save_every: steps between lines of the log, validations, checkpoints.
        sharding: with torchrun: "ddp" = a copy on every process, "fsdp" = weights and optimiser sharded (FSDP2).
    """

    steps: int = 2000
    batch_rows: int = 4096
    accumulate: int = 1
    checkpointing: bool = False
    optimiser: str = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    clip_value: float | None = 0.5
    clip_norm: float | None = None
    autocast: str = "none"
    seed: int = 0
    workers: int = 0
    log_every: int = 10
    validate_every: int = 500
    save_every: int = 200
    sharding: str = "ddp"

    def __post_init__(self):
        _one_of("optimisation.autocast", self.autocast, "none", "bfloat16")
        _one_of("optimisation.sharding", self.sharding, "ddp", "fsdp")
        _one_of("optimisation.optimiser", self.optimiser, "adamw", "muon")
        if (self.optimiser, self.sharding) == ("muon", "fsdp"):
            raise ValueError("optimisation.optimiser=muon needs optimisation.sharding=ddp: it takes whole matrices")
        for name in ("steps", "batch_rows", "accumulate", "log_every", "validate_every", "save_every"):
            _at_least(f"optimisation.{name}", getattr(self, name), 1)
        for name in ("warmup", "workers", "weight_decay", "learning_rate"):
            _at_least(f"optimisation.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class DrafterTraining:
    """One run.

    Attributes:
        run: its folder; <run>/drafter is the result.
        target: folder or hub id of the target.
        device: cpu, cuda, cuda:1; None = cuda where it can be used.
        dtype: the target is loaded in: "auto", "float32", "bfloat16", "float16".
    """

    run: str
    target: str
    device: str | None = None
    dtype: str = "auto"
    data: Data = field(default_factory=Data)
    answers: Answers = field(default_factory=Answers)
    states: States = field(default_factory=States)
    drafter: Shape = field(default_factory=Shape)
    recipe: Recipe = field(default_factory=Recipe)
    optimisation: Optimisation = field(default_factory=Optimisation)

    def __post_init__(self):
        _one_of("dtype", self.dtype, "auto", "float32", "bfloat16", "float16")
        if self.recipe.visual and self.recipe.visual_positions == "target" and self.drafter.positions != "target":
            raise ValueError("recipe.visual_positions=target needs drafter.positions=target")
        if self.recipe.visual and (self.drafter.layer == "eagle3") != (self.drafter.visual == "states"):
            raise ValueError(
                "drafter.layer=eagle3 and drafter.visual=states need each other where recipe.visual=true, got "
                f"{self.drafter.layer} and {self.drafter.visual}"
            )
        if self.recipe.visual and self.drafter.num_layers > 1:  # visual rows are keys and values of the first layer
            raise ValueError(f"drafter.num_layers={self.drafter.num_layers} needs recipe.visual=false")
        if self.drafter.fused_layers and self.recipe.feature:
            raise ValueError(f"recipe.feature must be 0 with drafter.fused_layers, got {self.recipe.feature}")
        seen = (self.recipe.visual, self.recipe.visual_positions)
        if self.drafter.visual != "none" and seen != (True, "before"):
            raise ValueError(
                f"drafter.visual={self.drafter.visual} needs recipe.visual=true and visual_positions=before, "
                f"got {str(seen[0]).lower()} and {seen[1]}"
            )
