"""What would otherwise fail deep inside a generation, or on a GPU without a word."""

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from sparrow.drafters.protocol import Drafter
from sparrow.targets.adapter import Target


def check_arguments(target: Target, seed: object, streamer: object, on_round: object, kwargs: dict) -> None:
    """Raises ValueError that names argument, rule and value."""
    ids, new = kwargs.get("input_ids"), kwargs.get("max_new_tokens")
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2 or ids.numel() == 0:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"input_ids must be an int64 tensor [B, P], B and P >= 1, got {got}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= target.vocab_size:
        raise ValueError(f"input_ids must lie in [0, {target.vocab_size}), got {low if low < 0 else high}")
    if new is not None and not isinstance(new, Integral):
        raise ValueError(f"max_new_tokens must be an integer, got {new!r}")
    _check_seed(seed, len(ids))
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise ValueError(f"streamer must have put and end, as transformers' have, got {type(streamer).__name__}")
    if streamer is not None and len(ids) > 1:
        raise ValueError(f"a streamer takes one sequence, got a batch of {len(ids)}")
    if on_round is not None and not callable(on_round):
        raise ValueError(f"on_round must be callable, got {type(on_round).__name__}")


def _check_seed(seed: object, sequences: int) -> None:
    seeds = seed if isinstance(seed, Sequence) and not isinstance(seed, str) else None
    if seed is None:
        return
    for value in (seed,) if seeds is None else seeds:
        if not (isinstance(value, Integral) and -(2**63) <= int(value) < 2**63):
            raise ValueError(f"seed must be an integer of 64 bits, got {value!r}")
    if seeds is not None and len(seeds) != sequences:
        raise ValueError(f"seed must be an integer, or one for each of the {sequences} prompts, got {seed!r}")


def check_drop_layer(target: Target, drafter: Drafter, layer: object, kwargs: dict, prefixes: object) -> None:
    """Raises ValueError where visual_drop_layer cannot be."""
    if layer is None:
        return
    layers = range(max(target.deepstack_layers, 1), target.num_layers)  # deepstack adds to visual rows
    if isinstance(layer, bool) or layer not in layers:
        raise ValueError(f"visual_drop_layer must be a layer in [{layers[0]}, {layers[-1]}], got {layer!r}")
    mask = kwargs.get("attention_mask")
    if len(kwargs["input_ids"]) > 1 or (mask is not None and not bool((mask == 1).all())):
        raise ValueError("visual_drop_layer takes one sequence without padding")
    if prefixes is not None:
        raise ValueError("visual_drop_layer cannot go with sessions or prefixes: kept rows are those of all layers")
    if drafter.reads_cache or not drafter.text_states:
        raise ValueError(
            f"visual_drop_layer cannot go with {type(drafter).__name__}, which reads rows or states of visual tokens"
        )


def check_mask(ids: Tensor, mask: object) -> None:
    """Raises ValueError for an attention_mask that hides more than padding on the left, or has no meaning."""
    if mask is None:
        return
    b, p = ids.shape
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != b or 1 != mask.shape[1] < p:
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask must be a tensor of shape [{b}, {p}], as input_ids, got {got}")
    if other := int(((mask != 0) & (mask != 1)).sum()):
        raise ValueError(f"attention_mask must hold zeros and ones, got {other} other values in {mask.numel()}")
    if bool((mask == 1).all()):
        return
    if mask.shape[1] != p:
        raise ValueError(
            f"attention_mask must be of shape [{b}, {p}], as input_ids, to hide tokens; got {list(mask.shape)}"
        )
    for row, shown in enumerate((mask == 1).tolist()):
        if not shown[-1] or not all(shown[shown.index(True) :]):
            raise ValueError(
                f"attention_mask may hide tokens at the left of a prompt only (padding), got {mask[row].tolist()} for "
                f"sequence {row}"
            )


def refuse_all_padding(ids: Tensor, mask: Tensor | None) -> None:
    """A mask is here where transformers found padding tokens in a prompt without one. Raises ValueError."""
    if mask is not None and not mask.any(-1).all():
        raise ValueError(f"input_ids must hold more than padding (pad_token_id), got {ids.tolist()}")
