"""What a drafter is, apart from its weights."""

import json
from dataclasses import dataclass, field, fields

from sparrow.tree import TreeConfig

FORMAT_VERSION = 1


@dataclass(frozen=True)
class DrafterConfig:
    """Everything about a drafter but its weights; stored as config.json.

    Attributes:
        target: fingerprint of the target it was made for (family, sizes, hash of head rows).
        hidden_layer: index into transformers' hidden_states of the states it reuses; num_layers = after the final norm.
        fused_layers: further such layers; the states of all are joined and mapped to hidden_size by a linear layer
            without bias where they enter (as in EAGLE-3, arXiv 2503.01840). Own outputs are reused as they are.
        hidden_norm: RMSNorm (own weight) on reused states, applied once when a state enters.
        output_norm: norm before the head: "own", "target" (the target's final norm) or "none".
        rope_theta: base of the rotary embedding.
        positions: "text" numbers text rows consecutively; "sequence" numbers rows by their place in the whole sequence,
            visual tokens counted; "target" uses the target's own position ids.
        visual: what it sees of the video when it drafts. "none" = nothing: text rows only. "rows" = every visual
            token is a row (MSD). "compressed" = one token per video and a global vector in every
            later state, both drawn from all visual tokens (ViSpec). See docs/rivals.md.
        visual_layer: index into hidden_states of the states of visual tokens these are made of; 0 = the projector's
            embeddings (as both papers have it).
        window, n_anchor: 0 = all text rows; window > 0 = the first n_anchor and the last `window` text rows.
        draft_vocab: True where the drafter proposes from a subset of the vocabulary (ids stored with the weights).
        tree: default tree, "total-depth-width".
    """

    target: dict[str, object]
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    hidden_layer: int
    fused_layers: tuple[int, ...] = ()
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = True
    fc_bias: bool = False
    hidden_norm: bool = False
    output_norm: str = "own"
    rope_theta: float = 10000.0
    positions: str = "text"
    visual: str = "none"
    visual_layer: int = 0
    window: int = 0
    n_anchor: int = 0
    draft_vocab: bool = False
    tree: str = "30-4-8"
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self):
        object.__setattr__(self, "fused_layers", tuple(self.fused_layers))  # JSON has lists
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"drafter format_version must be {FORMAT_VERSION}, got {self.format_version!r}")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary embedding), got {self.head_dim}")
        if self.output_norm not in ("own", "target", "none"):
            raise ValueError(f"output_norm must be own, target or none, got {self.output_norm!r}")
        if self.positions not in ("text", "sequence", "target"):
            raise ValueError(f"positions must be text, sequence or target, got {self.positions!r}")
        if self.visual not in ("none", "rows", "compressed"):
            raise ValueError(f"visual must be none, rows or compressed, got {self.visual!r}")
        if self.visual != "none" and self.positions != "sequence":
            raise ValueError(f"visual={self.visual} needs positions=sequence, got positions={self.positions}")
        TreeConfig.parse(self.tree)

    @property
    def state_layers(self) -> tuple[int, ...]:
        """All layers whose states it reuses, in the order they are joined."""
        return (self.hidden_layer, *self.fused_layers)

    @property
    def seen_layer(self) -> int | None:
        """The layer whose states of visual tokens it sees when it drafts; None = it sees no video."""
        return None if self.visual == "none" else self.visual_layer

    @classmethod
    def from_json(cls, text: str, **overrides: object) -> "DrafterConfig":
        """The config in `text` with `overrides` in it. Raises ValueError where a key is unknown or missing."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("a drafter's config.json holds one JSON object")
        values |= overrides
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown keys in a drafter's config.json: {', '.join(unknown)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"a drafter's config.json is incomplete: {error}") from None
