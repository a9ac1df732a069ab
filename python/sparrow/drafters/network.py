"""The drafter: one decoder layer, or a few, that see text only (Sparrow, arXiv 2602.15318).

    z_t = FC(e_t ++ h_{t-1})                    hidden state reuse (HSR)
    o_t = Layer(z)_t, attending text rows only  text-anchored window attention (VATA)
    p_t = softmax(Head(norm(o_t)))              embedding and head are the target's own, frozen and not stored

e_t is the embedding of text token t and h_{t-1} the target's state of the previous position of the full sequence (the
drafter's own output where the target has not been there yet).
"""

import pathlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparrow_ext
from sparrow.drafters import storage
from sparrow.drafters.compressor import Compressor
from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.layer import Layer, RMSNorm
from sparrow.drafters.protocol import Drafter
from sparrow.drafters.vocabulary import Vocabulary
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig


def rope_frequency(config: DrafterConfig) -> Tensor:
    """Float32 [head_dim / 2]: the rotary embedding's angle per position."""
    return config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)


class SparrowDrafter(Vocabulary):
    """FC + decoder layers (one, as in the paper, or num_layers) + norm over a target's frozen embedding and head.

    Call `bind` with the target's tables before drafting: they are shared, never stored.
    """

    rope_frequency: Tensor

    def __init__(self, config: DrafterConfig):
        super().__init__(config)
        e, eps = config.hidden_size, config.rms_norm_eps
        if config.layer == "eagle":
            self.fc = nn.Linear(2 * e, e, bias=config.fc_bias)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        if config.fused_layers:
            self.fuse = nn.Linear(len(config.state_layers) * e, e, bias=False)
        if config.output_norm == "own":
            self.norm = RMSNorm(e, eps)
        if config.hidden_norm:
            self.hidden_norm = RMSNorm(e, eps)
        if config.visual == "compressed":
            self.compressor = Compressor(e, config.num_heads, config.head_dim, config.qkv_bias)
        self.register_buffer("rope_frequency", rope_frequency(config), persistent=False)

    @property
    def weight(self) -> Tensor:
        """One of its matrices: all have its dtype and device."""
        return self.decoder_layer.self_attn.o_proj.weight

    @property
    def decoder_layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def decoder_layer(self) -> Layer:
        """The first one, which reads embeddings and states."""
        return self.decoder_layers[0]

    # ---- one forward, two ways: the same numbers by test ----
    def reuse(self, hidden: Tensor, summary: Tensor | None = None) -> Tensor:
        """States as FC reads them [..., E]; applied once, when a state enters.

        hidden: [..., E * layers], the target's states; or [..., E], the drafter's own outputs.
        summary: broadcast to [..., E], the video's global vector where visual=compressed; else not looked at.
        """
        if self.config.fused_layers and hidden.shape[-1] != self.config.hidden_size:
            hidden = self.fuse(hidden)
        hidden = self.hidden_norm(hidden) if self.config.hidden_norm else hidden
        return self.compressor.fuse(hidden, summary) if self.config.visual == "compressed" else hidden

    def cos_sin(self, positions: Tensor) -> Tensor:
        """float32 [..., D]: D/2 cosines, then D/2 sines, of integer positions [...]."""
        angle = positions.unsqueeze(-1).float() * self.rope_frequency
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def forward(self, token_ids: Tensor, hidden: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
        """Teacher-forced forward in plain PyTorch, for training.

        Args:
            token_ids: int64 [B, T], text tokens.
            hidden: [B, T, E], each token's h_{t-1}, already through `reuse`.
            positions: int64 [B, T].
            visible: bool [B, 1, T, T] where attention is not causal.

        Returns:
            [B, T, E], the drafter's output before its norm (what deeper levels reuse as h).
        """
        x = self.rows(F.embedding(token_ids, self.embedding), hidden)
        return self.layer(x, positions, visible)

    def rows(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """The layer's rows [..., W] of embeddings [..., E] and states [..., E], in plain PyTorch."""
        both = torch.cat([embedded, hidden], dim=-1)
        return self.fc(both) if self.config.layer == "eagle" else both

    def rows_of(
        self, token_ids: Tensor, row_index: Tensor, hidden: Tensor, error: Tensor | None = None,
        num_rows: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The layer's rows [M, W] through the operators.

        Args:
            token_ids: int64 [M].
            row_index: int32 [M], rows of `hidden` ([R, E], through `reuse`); -1 = a zero row.
            error: the operators' error word.
            num_rows: int32 [1], rows in use; the others may be anything.
        """
        if self.config.layer == "eagle":
            return sparrow_ext.hsr_project(
                token_ids, row_index, self.embedding, hidden, self.fc.weight, self.fc.bias,
                num_rows=num_rows, error=error,
            )  # fmt: skip
        states = torch.where(row_index[:, None] >= 0, hidden[row_index.clamp(0, len(hidden) - 1)], 0)
        tokens = token_ids.clamp(0, len(self.embedding) - 1)  # of rows that are not in use
        return torch.cat([F.embedding(tokens, self.embedding), states], dim=-1)

    def layer(self, x: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
        """The decoder layers over rows x [B, T, W], in plain PyTorch."""
        for layer in self.decoder_layers:
            x = layer.attend(x, *layer.project(x, self.cos_sin(positions)), visible)
        return x

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, T, D] and keys [B, K, T, D], and values [B, K, T, D], of rows x [B, T, W] in the first
        layer.
        """
        return self.decoder_layer.project(x, self.cos_sin(positions))

    @torch.no_grad()
    def extend(
        self,
        token_ids: Tensor,
        row_index: Tensor,
        hidden: Tensor,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        lengths: Tensor,
        tree_start: int,
        anc: Tensor | None = None,
        num_rows: Tensor | None = None,
        error: Tensor | None = None,
    ) -> Tensor:
        """Forward of new rows through the operators; their keys and values are written behind `lengths`.

        Args:
            token_ids: int64 [B, T].
            row_index: int32 [B, T], rows of `hidden` ([R, E], through `reuse`); -1 = a zero row.
            positions: int64 [B, T].
            keys, values: [num_layers * B, capacity, K, D], the drafter's cache, layer by layer (mutated).
            lengths: int32 [B], its text rows.
            tree_start: tree rows already behind them.
            anc: int64 [B, T, W] over tree rows; None = causal.
            num_rows: int32 [B], rows in use; the others write nothing.
            error: the operators' error word.

        Returns:
            [B, T, E], as `forward`.
        """
        b, t = token_ids.shape
        used = num_rows if b == 1 else None
        x = self.rows_of(token_ids.flatten(), row_index.flatten(), hidden, error, used).view(b, t, -1)
        cos_sin = self.cos_sin(positions)
        for layer, k, v in zip(self.decoder_layers, keys.split(b), values.split(b), strict=True):
            x = layer.extend(x, cos_sin, k, v, lengths, tree_start, anc, num_rows)
        return x

    @torch.no_grad()
    def append(
        self,
        token_ids: Tensor,
        row_index: Tensor,
        hidden: Tensor,
        positions: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        """Writes keys and values of rows and nothing else: in a single layer they depend on no other row.

        Args:
            token_ids: int64 [R].
            row_index: int32 [R], rows of `hidden` ([N, E], through `reuse`); -1 = a zero row.
            positions: int64 [R].
            slots: int32 [R], rows of the flattened cache; -1 = written nowhere.
            keys, values: [B, capacity, K, D], contiguous (mutated).
        """
        x = self.rows_of(token_ids, row_index, hidden)
        self.decoder_layer.append(x, self.cos_sin(positions), slots, keys, values)

    # ---- in the loop ----
    def in_loop(self, target: Target, tree: TreeConfig | None) -> tuple[Drafter[Any], TreeConfig | None]:
        """See EntersLoop. Raises ValueError where dtype or device are not the target's, too."""
        from sparrow.drafters import text, visual  # they import this file

        self.attach(target)
        have, want = self.weight, target.embedding
        if (have.dtype, have.device) != (want.dtype, want.device):
            raise ValueError(
                f"the drafter is {have.dtype} on {have.device}, the model {want.dtype} on {want.device}: call "
                "drafter.place(model.device, model.dtype)"
            )
        kind = visual.VisualDrafter if self.config.positions == "sequence" else text.TextDrafter
        return kind(self), tree or TreeConfig.parse(self.config.tree)

    # ---- storage ----
    def save_pretrained(self, folder: str | pathlib.Path) -> None:
        """Writes config.json and model.safetensors; the target's tables are not stored."""
        storage.save(self.config, self.state_dict(), folder)

    @classmethod
    def from_pretrained(cls, folder: str | pathlib.Path, **overrides: object) -> "SparrowDrafter":
        """Reads what save_pretrained wrote.

        Args:
            folder: its folder.
            overrides: fields of DrafterConfig to be replaced: visual="none" makes MSD + VATA of MSD, and of ViSpec a
                drafter whose global vector is zero.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the folder holds a target; the config or the weights do not fit this format, or a weight is not
                finite.
        """
        config, weights = storage.load(folder, overrides)
        return cls.of(config, weights, str(folder))

    @classmethod
    def of(cls, config: DrafterConfig, weights: dict[str, Tensor], where: str = "memory") -> "SparrowDrafter":
        """The drafter with these weights, which it takes as they are.

        Raises:
            ValueError: they do not fit the config; `where` they come from is named.
        """
        with torch.device("meta"):  # no memory for sizes that the weights turn out not to have
            drafter = cls(config)
        drafter.rope_frequency = rope_frequency(config)
        drafter.take_vocabulary(weights, where)
        try:
            drafter.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            first = str(error).splitlines()[:2][-1].strip()  # behind a heading, one line per fault
            raise ValueError(f"the weights in {where} do not fit its config: {first}") from None
        return drafter.eval()

    @classmethod
    def from_target(cls, target: Target, *, seed: int = 0, **overrides: object) -> "SparrowDrafter":
        """A drafter shaped like one of the target's layers, randomly initialised and bound to it.

        Args:
            target: the adapter of the model it will draft for.
            seed: of the initialisation.
            overrides: fields of DrafterConfig.
        """
        values = storage.shape_of(target.config) | {
            "target": target.fingerprint(), "hidden_layer": target.num_layers,
        }  # fmt: skip
        config = DrafterConfig(**{**values, **overrides})  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drafter = cls(config)
        if config.own_head:  # starts as the target's
            head = getattr(target.head, "weight", target.embedding)
            drafter.set_head(head.detach().clone())
        drafter.place(target.device, target.embedding.dtype).attach(target)
        return drafter

    def place(self, device: torch.device, dtype: torch.dtype) -> "SparrowDrafter":
        """Moves the weights for decoding (evaluation mode, no gradients); rotary frequencies stay float32."""
        frequency = self.rope_frequency
        self.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.rope_frequency = frequency.to(device)
        return self

    def attach(self, target: Target) -> None:
        """Binds to a target after checking that the drafter was made for it.

        Raises:
            ValueError: the fingerprints differ; the message names the first field that does.
        """
        want, have = self.config.target, target.fingerprint()
        for key, value in have.items():
            if want.get(key) != value:
                raise ValueError(
                    f"the drafter was made for a target with {key}={want.get(key)!r}; this one has {value!r}"
                )
        for layer in self.config.state_layers:
            if not 0 <= layer <= target.num_layers:
                raise ValueError(f"hidden_layer must lie in [0, {target.num_layers}], got {layer}")
        self.bind(target.embedding, target.head, target.norm)
