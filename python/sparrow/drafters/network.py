"""The drafter: one decoder layer that sees text only (Sparrow, arXiv 2602.15318).

    z_t = FC(e_t ++ h_{t-1})                    hidden state reuse (HSR)
    o_t = Layer(z)_t, attending text rows only  text-anchored window attention (VATA)
    p_t = softmax(Head(norm(o_t)))              embedding and head are the target's own, frozen and not stored

e_t is the embedding of text token t and h_{t-1} the target's state of the previous position of the full sequence (the
drafter's own output where the target has not been there yet).
"""

import pathlib
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import sparrow_ext
from sparrow.drafters.compressor import Compressor
from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.layer import Layer, RMSNorm
from sparrow.drafters.protocol import Drafter
from sparrow.files import replacing, write_json, write_tensors
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class Tables(NamedTuple):
    """What a drafter shares with its target; in a tuple none of it is registered as the drafter's own.

    Attributes:
        embedding: the target's table [V, E].
        head, norm: the target's LM head and final norm.
        draft_rows: the head's rows for the draft vocabulary [Vd, E]; None where the head is no plain weight.
    """

    embedding: Tensor
    head: nn.Module
    norm: nn.Module
    draft_rows: Tensor | None


def rope_frequency(config: DrafterConfig) -> Tensor:
    """Float32 [head_dim / 2]: the rotary embedding's angle per position."""
    return config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)


class SparrowDrafter(nn.Module):
    """FC + one decoder layer + norm over a target's frozen embedding and head.

    Call `bind` with the target's tables before drafting: they are shared, never stored.
    """

    rope_frequency: Tensor
    draft_vocab_ids: Tensor

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.config = config
        e, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(2 * e, e, bias=config.fc_bias)
        self.layers = nn.ModuleList([Layer(config)])  # a list for the sake of the stored names
        if config.fused_layers:
            self.fuse = nn.Linear(len(config.state_layers) * e, e, bias=False)
        if config.output_norm == "own":
            self.norm = RMSNorm(e, eps)
        if config.hidden_norm:
            self.hidden_norm = RMSNorm(e, eps)
        if config.draft_vocab:
            self.register_buffer("draft_vocab_ids", torch.empty(0, dtype=torch.int64))
        if config.visual == "compressed":
            self.compressor = Compressor(e, config.num_heads, config.head_dim, config.qkv_bias)
        self.register_buffer("rope_frequency", rope_frequency(config), persistent=False)
        self._tables: Tables | None = None

    # ---- the target's tables ----
    def bind(self, embedding: Tensor, head: nn.Module, norm: nn.Module) -> None:
        """Shares a target's embedding table [V, E], LM head and final norm with the drafter."""
        rows = getattr(head, "weight", None)
        if not isinstance(rows, Tensor) or getattr(head, "bias", None) is not None:
            rows = None  # no plain weight: `propose` goes through the module
        elif self.config.draft_vocab:
            rows = rows[self.draft_vocab_ids]
        self._tables = Tables(embedding, head, norm, rows)

    @property
    def tables(self) -> Tables:
        """What `bind` was given. Raises RuntimeError before that."""
        if self._tables is None:
            raise RuntimeError("the drafter shares its target's embedding and head: call bind() first")
        return self._tables

    @property
    def embedding(self) -> Tensor:
        return self.tables.embedding

    @property
    def decoder_layer(self) -> Layer:
        layer = self.layers[0]
        assert isinstance(layer, Layer)
        return layer

    @property
    def num_draft_tokens(self) -> int:
        """Size of the vocabulary it proposes from."""
        return len(self.draft_vocab_ids) if self.config.draft_vocab else self.embedding.shape[0]

    def head_input(self, out: Tensor) -> Tensor:
        """The drafter's output as the LM head reads it."""
        if self.config.output_norm == "own":
            return self.norm(out)
        return self.tables.norm(out) if self.config.output_norm == "target" else out

    def logits(self, out: Tensor) -> Tensor:
        """Logits over the draft vocabulary [..., Vd]; out [..., E]. For training and tests."""
        tables = self.tables
        if tables.draft_rows is not None:
            return F.linear(self.head_input(out), tables.draft_rows)
        all_logits = tables.head(self.head_input(out))
        return all_logits[..., self.draft_vocab_ids] if self.config.draft_vocab else all_logits

    def propose(self, out: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest next tokens of each row: log-probabilities float32 [..., k] and ids int64 [..., k]."""
        id_map = self.draft_vocab_ids if self.config.draft_vocab else None
        rows = self.tables.draft_rows
        if rows is not None:
            logp, ids, _ = sparrow_ext.lm_head_topk(self.head_input(out), rows, k, id_map)
        else:
            logp, ids, _ = sparrow_ext.topk_lse(self.logits(out), k, id_map)
        return logp, ids

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
        x = self.fc(torch.cat([F.embedding(token_ids, self.embedding), hidden], dim=-1))
        return self.layer(x, positions, visible)

    def layer(self, x: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
        """The decoder layer over rows x [B, T, E], in plain PyTorch."""
        return self.decoder_layer.attend(x, *self.project(x, positions), visible)

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, T, D] and keys [B, K, T, D], and values [B, K, T, D], of rows x [B, T, E]."""
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
            keys, values: [B, capacity, K, D], the drafter's cache (mutated).
            lengths: int32 [B], its text rows.
            tree_start: tree rows already behind them.
            anc: int64 [B, T, W] over tree rows; None = causal.
            num_rows: int32 [B], rows in use; the others write nothing.
            error: the operators' error word.

        Returns:
            [B, T, E], as `forward`.
        """
        b, t = token_ids.shape
        x = sparrow_ext.hsr_project(
            token_ids.flatten(), row_index.flatten(), self.embedding, hidden, self.fc.weight, self.fc.bias, error=error
        ).view(b, t, -1)
        return self.decoder_layer.extend(x, self.cos_sin(positions), keys, values, lengths, tree_start, anc, num_rows)

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
        """Writes keys and values of rows and nothing else: in one layer they depend on no other row.

        Args:
            token_ids: int64 [R].
            row_index: int32 [R], rows of `hidden` ([N, E], through `reuse`); -1 = a zero row.
            positions: int64 [R].
            slots: int32 [R], rows of the flattened cache; -1 = written nowhere.
            keys, values: [B, capacity, K, D], contiguous (mutated).
        """
        x = sparrow_ext.hsr_project(token_ids, row_index, self.embedding, hidden, self.fc.weight, self.fc.bias)
        self.decoder_layer.append(x, self.cos_sin(positions), slots, keys, values)

    # ---- in the loop ----
    def in_loop(self, target: Target, tree: TreeConfig | None) -> tuple[Drafter[Any], TreeConfig | None]:
        """See EntersLoop. Raises ValueError where dtype or device are not the target's, too."""
        from sparrow.drafters import text, visual  # they import this file

        self.attach(target)
        have, want = self.fc.weight, target.embedding
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
        with replacing(folder) as new:
            write_json(new / CONFIG_FILE, asdict(self.config))
            write_tensors(new / WEIGHTS_FILE, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | pathlib.Path, **overrides: object) -> "SparrowDrafter":
        """Reads what save_pretrained wrote.

        Args:
            folder: its folder.
            overrides: fields of DrafterConfig to be replaced: visual="none" makes MSD + VATA of MSD.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the folder holds a target; the config or the weights do not fit this format, or a weight is not
                finite.
        """
        folder = pathlib.Path(folder)
        _require(folder, CONFIG_FILE)
        try:
            config = DrafterConfig.from_json((folder / CONFIG_FILE).read_text(), **overrides)
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG_FILE} does not fit: {error}") from None
        _require(folder, WEIGHTS_FILE)
        with torch.device("meta"):  # no memory for sizes that the weights turn out not to have
            drafter = cls(config)
        drafter.rope_frequency = rope_frequency(config)
        try:
            weights = load_file(folder / WEIGHTS_FILE)
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS_FILE} is not safetensors, or cut short: {error}") from None
        for name, value in weights.items():
            if not value.isfinite().all():
                raise ValueError(f"the weights in {folder} must be finite: {name} is not")
        if drafter.config.draft_vocab and "draft_vocab_ids" in weights:
            drafter.set_draft_vocab(weights["draft_vocab_ids"])
        try:
            drafter.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            first = str(error).splitlines()[:2][-1].strip()  # behind a heading, one line per fault
            raise ValueError(f"the weights in {folder} do not fit its config: {first}") from None
        return drafter.eval()

    @classmethod
    def from_target(cls, target: Target, *, seed: int = 0, **overrides: object) -> "SparrowDrafter":
        """A drafter shaped like one of the target's layers, randomly initialised and bound to it.

        Args:
            target: the adapter of the model it will draft for.
            seed: of the initialisation.
            overrides: fields of DrafterConfig.
        """
        text = target.config
        rope = getattr(text, "rope_parameters", None) or {}
        heads = int(text.num_attention_heads)
        values: dict[str, object] = {
            "target": target.fingerprint(),
            "hidden_size": int(text.hidden_size),
            "num_heads": heads,
            "num_kv_heads": int(getattr(text, "num_key_value_heads", None) or heads),
            "head_dim": int(getattr(text, "head_dim", None) or text.hidden_size // heads),
            "intermediate_size": int(text.intermediate_size),
            "hidden_layer": target.num_layers,
            "rms_norm_eps": float(text.rms_norm_eps),
            "rope_theta": float(rope.get("rope_theta", 10000.0)),
        }
        config = DrafterConfig(**{**values, **overrides})  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drafter = cls(config)
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

    def set_draft_vocab(self, ids: Tensor) -> None:
        """Sets the draft vocabulary: distinct target token ids, int64 [Vd]."""
        if ids.dtype != torch.int64 or ids.dim() != 1 or ids.numel() == 0:
            raise ValueError(f"draft vocabulary ids must be int64 [Vd], Vd >= 1; got {ids.dtype} {tuple(ids.shape)}")
        if ids.unique().numel() != ids.numel():
            raise ValueError("draft vocabulary ids must be distinct: each draft id maps to one token")
        self.draft_vocab_ids = ids


def _require(folder: pathlib.Path, name: str) -> None:
    """Raises FileNotFoundError where a drafter's folder lacks a file."""
    if not (folder / name).is_file():
        raise FileNotFoundError(f"no drafter in {folder}: {name} is missing")
