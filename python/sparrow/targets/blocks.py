"""A verify pass through our own operators: the decoder layers of the Qwen2, Qwen3 and Llama models, with their weights.

transformers' modules compute the same in four times as many operators, behind wrappers that cost as much again for a
few tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import sparrow_ext
from sparrow.targets.cache import Place, TargetCache
from sparrow.targets.linear import is_plain, untouched
from sparrow.targets.versions import outside_tested

LAYERS = frozenset(
    {"Qwen2DecoderLayer", "Qwen2VLDecoderLayer", "Qwen2_5_VLDecoderLayer", "Qwen3DecoderLayer",
     "Qwen3VLTextDecoderLayer", "LlamaDecoderLayer"}
)  # fmt: skip
LINEARS = frozenset(
    {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
)  # fmt: skip
OURS = ("transformers.", "torch.nn.modules.")  # where classes of a model that nobody changed come from


@dataclass(frozen=True)
class Norm:
    """A root mean square norm, by itself or of a sum."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> "Norm":
        return cls(module.weight, module.variance_epsilon)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum."""
        return sparrow_ext.add_rms_norm(x, self.weight, self.eps, residual)


class Block:
    """One decoder layer's weights."""

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.q, self.k, self.v, self.o = (getattr(attention, f"{name}_proj") for name in "qkvo")
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.before, self.between = Norm.of(layer.input_layernorm), Norm.of(layer.post_attention_layernorm)
        named = dict(attention.named_children())
        self.of_q, self.of_k = (Norm.of(named[name]) if name in named else None for name in ("q_norm", "k_norm"))
        self.scale, self.head_dim = float(attention.scaling), int(attention.head_dim)

    def attend(self, x: Tensor, cos_sin: Tensor, anc: Tensor, at: Place, error: Tensor | None) -> Tensor:
        """Attention's output for normalised rows x [B, N, E]; their keys and values go to the cache."""
        q, k, v = (rows.unflatten(-1, (-1, self.head_dim)) for rows in _linears(x, self.q, self.k, self.v))
        q, k = q if self.of_q is None else self.of_q(q)[0], k if self.of_k is None else self.of_k(k)[0]
        sparrow_ext.rope_append(q, k, v, cos_sin, at.slots, at.keys, at.values)
        out, _ = sparrow_ext.tree_attention(
            q, at.keys, at.values, at.lengths, anc=anc, scale=self.scale, max_prefix_len=at.most, error=error
        )
        return _linear(out.flatten(2), self.o)

    def feed(self, x: Tensor) -> Tensor:
        """The MLP's output for normalised rows x [B, N, E]."""
        return _linear(sparrow_ext.silu_mul(*_linears(x, self.gate, self.up)), self.down)


class Blocks:
    """All layers of a decoder, its embedding, its last norm and the head.

    Args:
        model: a transformers video LLM whose `runs_through_blocks`.
    """

    def __init__(self, model: Any):
        decoder = model.model.language_model
        self.embedding, self.rotary = decoder.embed_tokens.weight, decoder.rotary_emb
        self.blocks, self.norm = [Block(layer) for layer in decoder.layers], Norm.of(decoder.norm)
        self.head = model.get_output_embeddings()
        rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
        self.axes = 3 if rope.get("mrope_section") else 1

    def __call__(
        self, tokens: Tensor, anc: Tensor, position_ids: Tensor, cache: TargetCache, error: Tensor | None,
        layers: tuple[int, ...],
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Logits [B, N, V] and the states [B, N, E] of `layers` of tokens int64 [B, N]; inside `cache.appending`.

        anc, position_ids, cache, error: as for Target.verify; layers: indices into transformers' hidden_states.
        """
        total, more = F.embedding(tokens, self.embedding), None
        cos_sin, states = self._cos_sin(total, position_ids), []
        for block, place in zip(self.blocks, cache.places, strict=True):
            normed, total = block.before(total, more)
            states.append(total)
            normed, total = block.between(total, block.attend(normed, cos_sin, anc, place, error))
            more = block.feed(normed)
        states.append(self.norm(total, more)[0])
        return _linear(states[-1], self.head), [states[layer] for layer in layers]

    def _cos_sin(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """float32 [B, N, D], as rope_append takes it, of positions int64 [..., B, N]."""
        if self.axes > 1:
            position_ids = position_ids.expand(self.axes, *x.shape[:2]) if position_ids.dim() == 2 else position_ids
            position_ids = position_ids[-self.axes :]
        cos, sin = self.rotary(x, position_ids)
        half = cos.shape[-1] // 2
        return torch.cat([cos[..., :half], sin[..., :half]], dim=-1).float()


def runs_through_blocks(model: Any, device: torch.device) -> bool:
    """Whether the decoder and the head are of the known kind, and nobody has changed what they do.

    Hooks, forwards of their own (offloading), modules of other classes (LoRA, quantised layers), weights elsewhere or
    of several dtypes, a release of transformers that nobody has tested: then its modules run, with our attention, and
    our linear layers where those are plain.
    """
    decoder, head = model.model.language_model, model.get_output_embeddings()
    inside = list(decoder.modules())
    parameters = [*decoder.parameters(), *head.parameters()]
    return (
        outside_tested("transformers", transformers.__version__) is None
        and all(type(m).__module__.startswith(OURS) for m in (*inside, head))
        and type(decoder.embed_tokens) is nn.Embedding
        and all(untouched(m) for m in (model, model.model, *inside, head))
        and all(map(_is_known, decoder.layers))
        and type(decoder.norm).__name__.endswith("RMSNorm")
        and all(is_plain(m, device) for m in (*inside, head) if m is head or isinstance(m, nn.Linear))
        and {(p.dtype, p.device) for p in parameters} == {(decoder.embed_tokens.weight.dtype, device)}
        and 2 * decoder.rotary_emb.inv_freq.numel() == decoder.layers[0].self_attn.head_dim
    )


def _is_known(layer: Any) -> bool:
    """Whether a decoder layer has the parts that Block computes with, and no others."""
    if type(layer).__name__ not in LAYERS:
        return False
    linears = {name for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
    norms = [m for m in (*layer.children(), *layer.self_attn.children()) if m not in (layer.self_attn, layer.mlp)]
    norms = [m for m in norms if not isinstance(m, nn.Linear)]
    silu = type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    return linears == LINEARS and silu and all(type(m).__name__.endswith("RMSNorm") for m in norms)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return sparrow_ext.skinny_linear(x, layer.weight, layer.bias)


def _linears(x: Tensor, *layers: nn.Linear) -> list[Tensor]:
    return sparrow_ext.skinny_linear_group(x, [layer.weight for layer in layers], [layer.bias for layer in layers])
