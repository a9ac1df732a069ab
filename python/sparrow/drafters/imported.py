"""Public drafters of other programs as ordinary ones: MSD, EAGLE-1 and -2, ViSpec, EAGLE-3.

The layout is told from names and shapes. Text rows only (VATA) unless asked otherwise: rows keep the numbers they were
trained with, so that the video leaves a gap.
"""

import pathlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparrow.drafters.checkpoint import Weights, read
from sparrow.drafters.compressor import without_summary
from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.network import SparrowDrafter, rope_frequency
from sparrow.drafters.storage import shape_of
from sparrow.targets.folder import TargetFolder

EAGLE, VISPEC, EAGLE3 = "EAGLE or MSD", "ViSpec", "EAGLE-3"
TREES = {EAGLE: "59-6-10", VISPEC: "29-4-8", EAGLE3: "15-5-4"}  # as published with them
QKV = ("q_proj", "k_proj", "v_proj")
Made = tuple[DrafterConfig, dict[str, Tensor]]


def import_drafter(
    folder: str | pathlib.Path,
    target: TargetFolder,
    *,
    vata: bool = True,
    positions: str | None = None,
    tree: str | None = None,
) -> tuple[str, SparrowDrafter]:
    """The layout's name, and the drafter, in the checkpoint's dtype.

    Args:
        folder: config.json, and model.safetensors or pytorch_model.bin (of which only tensors are read).
        target: what it was made for.
        vata: text rows only; False = it sees the video as it was trained to.
        positions: see DrafterConfig; None = as it was trained.
        tree: total-depth-width; None = what is published with it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown layout, a weight that is missing, not wanted or of another shape, or another target's.

    Source: arXiv 2401.15077, 2406.16858 (EAGLE-1, -2), 2503.01840 (EAGLE-3), 2505.14260 (MSD), 2509.15235 (ViSpec).
    """
    config, text, weights = read(pathlib.Path(folder))
    kind = _layout(weights)
    shape = shape_of(text) | {"target": target.fingerprint(), "hidden_layer": int(target.text.num_hidden_layers)}
    _same_width(shape, config, target, weights)
    _same_embedding(weights, target)
    shape |= {"tree": tree or TREES[kind], "first_row": False, "positions": positions or "sequence"}
    made = _eagle3(config, text, shape, weights, target, vata, positions) if kind == EAGLE3 else _eagle(shape, weights)
    if kind == VISPEC:
        made = _vispec(*made, weights, vata)
    elif kind == EAGLE and not vata:
        made = replace(made[0], visual="rows"), made[1]
    _rotary(weights, made[0])
    weights.refuse_the_rest()
    return kind, SparrowDrafter.of(*made, str(folder))


def _layout(weights: Weights) -> str:
    if "imadpt.q" in weights:
        return VISPEC
    if "midlayer.hidden_norm.weight" in weights or "layers.0.hidden_norm.weight" in weights:
        return EAGLE3
    if "fc.weight" in weights and "layers.0.self_attn.q_proj.weight" in weights:
        return EAGLE
    raise ValueError(f"{weights.where} has none of the layouts that can be imported: {', '.join(TREES)}")


def _same_width(shape: dict[str, Any], config: dict[str, Any], target: TargetFolder, weights: Weights) -> None:
    wanted = int(target.text.hidden_size)
    for name, value in (
        ("hidden_size", shape["hidden_size"]),
        ("target_hidden_size", config.get("target_hidden_size")),
    ):
        if value not in (None, wanted):
            raise ValueError(f"{weights.where} was made for another target: {name} is {value}, the target's {wanted}")


def _same_embedding(weights: Weights, target: TargetFolder) -> None:
    """The embedding it carries must be the target's: it says what the drafter was made for, and is not kept."""
    if "embed_tokens.weight" not in weights:
        return
    theirs = weights.take("embed_tokens.weight", None, int(target.text.hidden_size))
    if len(theirs) > target.vocab_size:
        raise ValueError(
            f"{weights.where} was made for another target: embed_tokens.weight has {len(theirs)} rows, the target's "
            f"{target.vocab_size}"
        )
    step = max(1, len(theirs) // 1024)
    mine = target.tensor("embed_tokens.weight", step)[: -(-len(theirs) // step)].float()
    same = torch.isclose(theirs[::step].float(), mine, rtol=1e-2, atol=1e-6).all(1)
    if not same.all():
        row = int((~same).nonzero()[0]) * step
        raise ValueError(
            f"{weights.where} was made for another target: row {row} of embed_tokens.weight is not the target's"
        )


def _layer(weights: Weights, prefix: str, width: int, shape: dict[str, Any]) -> dict[str, Tensor]:
    """The layer's weights under our names, and in `shape` what their shapes say."""
    e, d, attention = shape["hidden_size"], shape["head_dim"], f"{prefix}.self_attn"
    shape["num_heads"] = len(weights.take(f"{attention}.q_proj.weight", None, width)) // d
    shape["num_kv_heads"] = len(weights.take(f"{attention}.k_proj.weight", None, width)) // d
    made = {
        "self_attn.qkv_proj.weight": weights.joined([f"{attention}.{n}.weight" for n in QKV], width),
        "self_attn.o_proj.weight": weights.take(f"{attention}.o_proj.weight", e, shape["num_heads"] * d),
        "post_attention_layernorm.weight": weights.take(f"{prefix}.post_attention_layernorm.weight", e),
        "mlp.gate_up_proj.weight": weights.joined([f"{prefix}.mlp.{n}_proj.weight" for n in ("gate", "up")], e),
        "mlp.down_proj.weight": weights.take(f"{prefix}.mlp.down_proj.weight", e, shape["intermediate_size"]),
    }
    bias = weights.bias([f"{attention}.{n}.bias" for n in QKV])
    shape["qkv_bias"] = bias is not None
    if bias is not None:
        made["self_attn.qkv_proj.bias"] = bias
    return {f"layers.0.{name}": value for name, value in made.items()}


def _eagle(shape: dict[str, Any], weights: Weights) -> Made:
    """FC(e ++ h), a layer without input norm, the target's head without a norm."""
    e = shape["hidden_size"]
    made = _layer(weights, "layers.0", e, shape) | {"fc.weight": weights.take("fc.weight", e, 2 * e)}
    if "fc.bias" in weights:
        made["fc.bias"] = weights.take("fc.bias", e)
    return DrafterConfig(**shape, input_norm=False, output_norm="none", fc_bias="fc.bias" in made), made


def _vispec(config: DrafterConfig, made: dict[str, Tensor], weights: Weights, vata: bool) -> Made:
    """With VATA no video has been seen: g is zero, and img_fc becomes a part of fc."""
    e, heads, d = config.hidden_size, config.num_heads, config.head_dim
    w = weights.take("img_fc.weight", e, 2 * e)
    b = weights.take("img_fc.bias", e) if "img_fc.bias" in weights else torch.zeros_like(w[0])
    parts = {"queries": weights.take("imadpt.q", 2, heads, d)}
    biases = {name: weights.bias([f"imadpt.{name}.bias"]) for name in ("k_proj", "v_proj")}
    for name in ("k_proj", "v_proj"):
        parts[f"{name}.weight"] = weights.take(f"imadpt.{name}.weight", heads * d, e)
    parts["o_proj.weight"] = weights.take("imadpt.o_proj.weight", e, heads * d)
    if vata:
        made["fc.weight"], made["fc.bias"] = without_summary(made["fc.weight"], made.get("fc.bias"), w, b)
        return replace(config, fc_bias=True), made
    if any(bias is not None for bias in biases.values()) or config.qkv_bias:  # ours has all of them, or none
        for name, given in biases.items():
            parts[f"{name}.bias"] = w.new_zeros(heads * d) if given is None else given
        key = "layers.0.self_attn.qkv_proj"
        made.setdefault(f"{key}.bias", torch.zeros_like(made[f"{key}.weight"][:, 0]))
    parts |= {"fusion.weight": w, "fusion.bias": b}
    has_bias = "k_proj.bias" in parts
    return replace(config, visual="compressed", qkv_bias=has_bias), made | {
        f"compressor.{name}": value for name, value in parts.items()
    }


def _eagle3(
    config: dict[str, Any], text: Any, shape: dict[str, Any], weights: Weights, target: TargetFolder, vata: bool,
    positions: str | None,
) -> Made:  # fmt: skip
    """q, k and v over 2E, three layers' states, a norm, and a head of its own over a part of the vocabulary."""
    for name in ("norm_before_fc", "fc_norm", "norm_output"):
        if config.get(name):
            raise ValueError(f"{weights.where}: {name} must be false, got {config[name]!r}")
    e, prefix = shape["hidden_size"], "midlayer" if "midlayer.hidden_norm.weight" in weights else "layers.0"
    made = _layer(weights, prefix, 2 * e, shape)
    for name in ("input_layernorm", "hidden_norm"):
        made[f"layers.0.{name}.weight"] = weights.take(f"{prefix}.{name}.weight", e)
    made["norm.weight"] = weights.take("norm.weight", e)
    made["lm_head.weight"] = head = weights.take("lm_head.weight", None, e)
    taps = _taps(config, int(target.text.num_hidden_layers))
    made["fuse.weight"] = weights.take("fc.weight", e, len(taps) * e)
    if (ids := _draft_ids(weights, len(head), target.vocab_size)) is not None:
        made["draft_vocab_ids"] = ids
    rope = getattr(text, "rope_parameters", None) or {}
    shape |= {"hidden_layer": taps[0], "fused_layers": taps[1:], "visual": "none" if vata else "states"}
    if positions is None and "mrope_section" in rope:
        if not vata:
            raise ValueError(f"{weights.where} numbers rows by M-RoPE: with the video seen give positions=sequence")
        shape["positions"] = "target"
    made_config = DrafterConfig(
        **shape, layer="eagle3", residual_norm=bool(config.get("norm_before_residual", False)),
        own_head=True, draft_vocab=ids is not None,
    )  # fmt: skip
    return made_config, made


def _taps(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    """Which of the target's hidden_states it reuses: SGLang counts layers' outputs, vLLM what enters a layer."""
    inner = config.get("eagle_config") or {}
    if not inner.get("use_aux_hidden_state", True):
        raise ValueError("eagle_config.use_aux_hidden_state must be true: EAGLE-3 reuses the states of three layers")
    if (after := inner.get("eagle_aux_hidden_state_layer_ids")) is not None:
        return tuple(int(k) + 1 for k in after)
    given = config.get("eagle_aux_hidden_state_layer_ids")
    return (2, layers // 2, layers - 3) if given is None else tuple(map(int, given))


def _draft_ids(weights: Weights, rows: int, vocab_size: int) -> Tensor | None:
    """Token ids of the head's rows; None where the head has the whole vocabulary."""
    if "d2t" not in weights:
        return None if rows == vocab_size else torch.arange(rows)
    ids: Tensor = weights.take("d2t", rows).long() + torch.arange(rows)
    if "t2d" in weights:
        marked = weights.take("t2d", None).bool().nonzero()[:, 0]
        if not torch.equal(marked, ids.sort().values):
            raise ValueError(f"{weights.where}: d2t and t2d name different tokens")
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(
            f"{weights.where} was made for another target: d2t leads to token {int(ids.max())} of {vocab_size}"
        )
    return ids


def _rotary(weights: Weights, config: DrafterConfig) -> None:
    """A stored table of angles must be the one its config gives."""
    for name in sorted(n for n in weights.left if n.endswith("rotary_emb.inv_freq")):
        table = weights.take(name, config.head_dim // 2)
        if not torch.allclose(table.float(), rope_frequency(config), rtol=1e-3):
            raise ValueError(f"{weights.where}: {name} is not what rope_theta={config.rope_theta:g} gives")
