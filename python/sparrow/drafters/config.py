"""What a drafter is, apart from its weights."""

import json
import math
from dataclasses import dataclass, field, fields

from sparrow.tree import TreeConfig

FORMAT_VERSION = 1
LENGTH = 2**31 - 1  # what the operators take for a length

# Lowest and highest value of each number. head_dim, window and n_anchor as draft_attention takes them; sizes beyond any
# model's, so that no product of two leaves 64 bits.
RANGES: dict[str, tuple[float, float]] = {
    "hidden_size": (1, 2**20),
    "num_heads": (1, 2**12),
    "num_kv_heads": (1, 2**12),
    "head_dim": (2, 256),
    "intermediate_size": (1, 2**22),
    "num_layers": (1, 8),
    "hidden_layer": (0, 2**12),
    "fused_layers": (0, 2**12),
    "visual_layer": (0, 2**12),
    "rms_norm_eps": (0.0, 1.0),
    "rope_theta": (1e-3, 1e12),
    "window": (0, LENGTH),
    "n_anchor": (0, LENGTH),
    "format_version": (FORMAT_VERSION, FORMAT_VERSION),
}
CHOICES = {
    "layer": ("eagle", "eagle3"),
    "output_norm": ("own", "target", "none"),
    "positions": ("text", "sequence", "target"),
    "visual": ("none", "rows", "states", "compressed"),
    "numbering": ("hf", "reference"),
}


@dataclass(frozen=True)
class DrafterConfig:
    """Everything about a drafter but its weights; stored as config.json.

    Attributes:
        target: fingerprint of the target it was made for (family, sizes, hash of the signs of head rows).
        hidden_layer: index into transformers' hidden_states of the states it reuses; num_layers = after the final norm.
        fused_layers: further such layers; the states of all are joined and mapped to hidden_size by a linear layer
            without bias where they enter (as in EAGLE-3, arXiv 2503.01840). Own outputs are reused as they are.
        num_layers: decoder layers; the paper's drafter has one. Further ones read the output of the one before.
        layer: what a row is. "eagle" = FC(e ++ h), and the layer reads that. "eagle3" (arXiv 2503.01840) = e and h
            themselves: q, k and v read RMSNorm(e) ++ RMSNorm(h), 2E wide, and h is the residual.
        input_norm: the layer has an RMSNorm before its attention; False as in EAGLE-1 and -2.
        residual_norm: with layer=eagle3: the residual is RMSNorm(h), not h.
        own_head: the LM head is its own, [Vd, E], not the target's.
        first_row: the prompt's first token is a row, with a state of zeros; False: none, as in EAGLE.
        hidden_norm: RMSNorm (own weight) on reused states, applied once when a state enters.
        output_norm: norm before the head: "own", "target" (the target's final norm) or "none".
        rope_theta: base of the rotary embedding.
        positions: "text" numbers text rows consecutively; "sequence" numbers rows by their place in the whole sequence,
            visual tokens counted; "target" uses the target's own position ids.
        visual: what it sees of the video when it drafts. "none" = nothing: text rows only. "rows" = every visual
            token is a row (MSD). "states" = every visual token is a row as text is: its embedding, and the state before
            it (EAGLE-3). "compressed" = one token per video and a global vector in every later state, both drawn from
            all visual tokens (ViSpec). See docs/rivals.md.
        visual_layer: index into hidden_states of the states of visual tokens these are made of; 0 = the projector's
            embeddings (as both papers have it).
        window, n_anchor: 0 = all text rows; window > 0 = the first n_anchor and the last `window` text rows.
        draft_vocab: True where the drafter proposes from a subset of the vocabulary (ids stored with the weights).
        tree: default tree, "total-depth-width".
        numbering: how the target's prompts were numbered in training, "hf" or "reference", as in sparrow.generate.
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
    num_layers: int = 1
    layer: str = "eagle"
    input_norm: bool = True
    residual_norm: bool = False
    own_head: bool = False
    first_row: bool = True
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
    numbering: str = "hf"
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self):
        if isinstance(self.fused_layers, list):  # JSON has lists
            object.__setattr__(self, "fused_layers", tuple(self.fused_layers))
        for one in fields(self):
            _check(one.name, one.type, getattr(self, one.name))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary embedding), got {self.head_dim}")
        if self.visual != "none" and self.positions != "sequence":
            raise ValueError(f"visual={self.visual} needs positions=sequence, got positions={self.positions}")
        if self.layer == "eagle3" and not (self.input_norm and self.visual in ("none", "states")):
            raise ValueError(
                "layer=eagle3 needs input_norm=true and visual=none or states, got "
                f"input_norm={str(self.input_norm).lower()} and visual={self.visual}"
            )
        if self.layer == "eagle" and (self.residual_norm or self.visual == "states"):
            raise ValueError("residual_norm=true and visual=states need layer=eagle3, got layer=eagle")
        if self.num_layers > 1 and (self.layer, self.visual, self.positions == "sequence") != ("eagle", "none", False):
            raise ValueError(  # of further layers keys and values of a prompt are not its rows' alone
                f"num_layers={self.num_layers} needs layer=eagle, visual=none and positions=text or target, got "
                f"{self.layer}, {self.visual} and {self.positions}"
            )
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
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("a drafter's config.json is nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError("a drafter's config.json holds one JSON object")
        if "model_type" in values or "architectures" in values:
            raise ValueError(f"this is a target (model_type {values.get('model_type')!r}), not a drafter")
        values |= overrides
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown keys in a drafter's config.json: {', '.join(unknown)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"a drafter's config.json is incomplete: {error}") from None


def _check(name: str, kind: object, value: object) -> None:
    """Raises ValueError where a field's value has another type, or lies outside its range or choices."""
    if kind == tuple[int, ...]:
        if not isinstance(value, tuple):
            raise ValueError(f"{name} must be a list of integers, got {value!r}")
        for one in value:
            _check(name, int, one)
    elif kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (isinstance(value, float) and math.isfinite(value))) or (kind is int and not whole):
            raise ValueError(f"{name} must be {'an integer' if kind is int else 'a finite number'}, got {value!r}")
        low, high = RANGES[name]
        if not low <= value <= high:  # type: ignore[operator]
            raise ValueError(
                f"{name} must {f'lie in [{low}, {high}]' if low < high else f'be {low}'}, got {value!s:.40}"
            )
    elif not isinstance(value, {bool: bool, str: str}.get(kind, dict)):  # type: ignore[call-overload]
        words = {bool: "true or false", str: "a string"}.get(kind, "an object")  # type: ignore[call-overload]
        raise ValueError(f"{name} must be {words}, got {value!r}")
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
