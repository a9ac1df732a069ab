"""The drafter's decoder layer, pre-norm with rotary grouped-query attention and a gated MLP, as in Qwen2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparrow_ext
from sparrow.drafters.config import DrafterConfig

MAX_ATTENTION_ROWS = 128  # rows draft_attention takes at once


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        """In plain PyTorch where gradients flow or autocast mixes dtypes, else the operator."""
        wanted = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if wanted or x.dtype != self.weight.dtype:
            return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)
        return sparrow_ext.add_rms_norm(x, self.weight, self.eps)[0]

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum, through the operator."""
        return sparrow_ext.add_rms_norm(x, self.weight, self.eps, residual)


class Attention(nn.Module):
    def __init__(self, config: DrafterConfig):
        super().__init__()
        heads, kv, d = config.num_heads, config.num_kv_heads, config.head_dim
        width = config.hidden_size * (2 if config.layer == "eagle3" else 1)
        self.qkv_proj = nn.Linear(width, (heads + 2 * kv) * d, bias=config.qkv_bias)
        self.o_proj = nn.Linear(heads * d, config.hidden_size, bias=False)


class MLP(nn.Module):
    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)

    def by_operators(self, x: Tensor) -> Tensor:
        """As `forward`, through the operators."""
        return _skinny(self.down_proj, sparrow_ext.silu_mul(*_skinny(self.gate_up_proj, x).chunk(2, dim=-1)))


class Layer(nn.Module):
    """The decoder layer, one forward in two ways: in plain PyTorch (`project`, then `attend`) or through the operators
    (`extend`). The same numbers by test.

    Its rows x are W wide: E, what FC made of embedding and state; or with layer=eagle3 2E, the two side by side.
    """

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.config = config
        if config.input_norm:
            self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.layer == "eagle3":
            self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def read(self, x: Tensor) -> Tensor:
        """What q, k and v are made of, [..., W]."""
        if self.config.layer == "eagle3":
            embedded, hidden = x.chunk(2, dim=-1)
            return torch.cat([self.input_layernorm(embedded), self.hidden_norm(hidden)], dim=-1)
        return self.input_layernorm(x) if self.config.input_norm else x

    def residual(self, x: Tensor) -> Tensor:
        """What attention is added to, [..., E]."""
        if self.config.layer == "eagle":
            return x
        hidden = x.chunk(2, dim=-1)[1]
        return self.hidden_norm(hidden) if self.config.residual_norm else hidden

    def project(self, x: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, T, D] and keys [B, K, T, D], and values [B, K, T, D], of rows x [B, T, W].

        cos_sin: float32 [B, T, D], as `SparrowDrafter.cos_sin` gives it.
        """
        c = self.config
        qkv = self.self_attn.qkv_proj(self.read(x)).unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
        q, k, v = qkv.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        cos, sin = (t.unsqueeze(1).to(x.dtype) for t in cos_sin.chunk(2, dim=-1))
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
        """The rest of the layer for rows x [B, T, W]: queries over keys k, values v [B, K, S, D].

        visible: bool [B, 1, T, S]; None = causal (S = T).
        """
        attended = F.scaled_dot_product_attention(
            q, k, v.to(q.dtype), attn_mask=visible, is_causal=visible is None, enable_gqa=True
        )
        x = self.residual(x) + self.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))

    def extend(
        self,
        x: Tensor,
        cos_sin: Tensor,
        keys: Tensor,
        values: Tensor,
        lengths: Tensor,
        tree_start: int,
        anc: Tensor | None,
        num_rows: Tensor | None,
    ) -> Tensor:
        """The whole layer for rows x [B, T, W] through the operators; the arguments are `SparrowDrafter.extend`'s."""
        c, parts = self.config, []
        qkv = _skinny(self.self_attn.qkv_proj, self.read(x))
        for start in range(0, x.shape[1], MAX_ATTENTION_ROWS):
            stop = min(start + MAX_ATTENTION_ROWS, x.shape[1])
            parts.append(
                sparrow_ext.draft_attention(
                    qkv[:, start:stop].contiguous(),
                    cos_sin[:, start:stop].contiguous(),
                    keys,
                    values,
                    lengths + start if start else lengths,
                    torch.full_like(lengths, tree_start),
                    anc,
                    scale=c.head_dim**-0.5,
                    window=c.window,
                    n_anchor=c.n_anchor,
                    num_rows=None if num_rows is None else (num_rows - start).clamp(0, stop - start),
                )
            )
        attended = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        attended = _skinny(self.self_attn.o_proj, attended.flatten(2))
        normed, x = self.post_attention_layernorm.of_sum(self.residual(x), attended)
        return x + self.mlp.by_operators(normed)

    def append(self, x: Tensor, cos_sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keys and values of rows x [R, W] alone, the same bits as `extend`'s; see `SparrowDrafter.append`."""
        c = self.config
        qkv = _skinny(self.self_attn.qkv_proj, self.read(x)).view(1, len(x), -1, c.head_dim)
        q, k, v = qkv.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=2)
        sparrow_ext.rope_append(
            q, k, v, cos_sin[None], slots[None], keys.flatten(0, 1)[None], values.flatten(0, 1)[None]
        )


def _skinny(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer through skinny_linear: a row's bits do not depend on which rows are drafted together."""
    return sparrow_ext.skinny_linear(x, layer.weight, layer.bias)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in transformers' rotate-half layout; x [B, heads, T, D], cos and sin [B, 1, T, D/2]."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
