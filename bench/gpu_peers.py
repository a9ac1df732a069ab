"""Other libraries' kernels for the same work, used where they are installed. Nothing here is needed to run sparrow.

An adapter turns one library's API into calls that take no argument. A library that is missing, or whose API is another
one than the adapter's, becomes a line in Work.missing or in the result's row; it never ends the run.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

Call = Callable[[], object]
Caches = list[tuple[Tensor, Tensor]]  # per copy: keys and values [1, S, K, D], strided


def load(name: str, build: Callable[[ModuleType], list[Call]]) -> list[Call] | str:
    """build(the imported module), or words: "not installed", or what went wrong."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        return "not installed"
    try:
        return build(importlib.import_module(name))
    except Exception as error:  # another library's failure is a row of the result, not the end of the run
        return describe(error)


def describe(error: Exception) -> str:
    """One line for a result's row."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"[:300]


def flex_tree(module: ModuleType, q: Tensor, caches: Caches, visible: Tensor) -> list[Call]:
    """torch's FlexAttention, compiled, with a block mask of `visible` bool [1, N, S]."""
    rows, nodes = visible.shape[-1], q.shape[1]
    mask = module.create_block_mask(lambda b, h, i, j: visible[0, i, j], 1, None, nodes, rows, device=q.device)
    compiled, query = torch.compile(module.flex_attention), q.transpose(1, 2)

    def call(k: Tensor, v: Tensor) -> Tensor:
        out = compiled(query, k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, enable_gqa=True)
        return out.transpose(1, 2)

    return [lambda c=c: call(*c) for c in caches]


def flash_decode(module: ModuleType, q: Tensor, caches: Caches) -> list[Call]:
    """flash-attn's decoding kernel; it takes no tree mask, so N = 1 only."""
    return [lambda c=c: module.flash_attn_with_kvcache(q, *c) for c in caches]


def flashinfer_tree(module: ModuleType, q: Tensor, caches: Caches, visible: Tensor) -> list[Call]:
    """FlashInfer's single-request attention with a custom mask, packed once: q [N, H, D], keys and values [K, S, D]."""
    packed = module.packbits(visible[0].flatten(), bitorder="little")
    heads_first = [tuple(x[0].transpose(0, 1) for x in c) for c in caches]
    return [
        lambda c=c: module.single_prefill_with_kv_cache(q[0], *c, packed_custom_mask=packed, kv_layout="HND")
        for c in heads_first
    ]


def xformers_tree(module: ModuleType, q: Tensor, caches: Caches, prefix: int, visible: Tensor) -> list[Call]:
    """xformers' tree attention: a prefix and a tree part, merged. Heads are [K, H / K], keys expanded views."""
    nodes, group = q.shape[1], q.shape[2] // caches[0][0].shape[2]
    query = q.unflatten(2, (-1, group))
    shut = torch.full((nodes, nodes), float("-inf"), dtype=q.dtype, device=q.device)
    tree_bias = shut.masked_fill(visible[0, :, prefix:], 0.0)
    mask = importlib.import_module("xformers.ops.fmha.attn_bias").BlockDiagonalPaddedKeysMask
    prefix_bias = mask.from_seqlens(q_seqlen=[nodes], kv_seqlen=[prefix], kv_padding=prefix)

    def part(x: Tensor, rows: slice) -> Tensor:
        return x[:, rows].unsqueeze(3).expand(-1, -1, -1, group, -1)

    def call(k: Tensor, v: Tensor) -> Tensor:
        tree, cache = slice(prefix, prefix + nodes), slice(0, prefix)
        parts = part(k, tree), part(v, tree), part(k, cache), part(v, cache)
        return module.tree_attention(query, *parts, spec_attn_bias=tree_bias, prefix_attn_bias=prefix_bias)

    return [lambda c=c: call(*c) for c in caches]


def sglang_accept(module: ModuleType, tokens: Tensor, parent: Tensor, target: Tensor, max_path: int) -> list[Call]:
    """sglang's greedy walk over first children and next siblings (int64), made from `parent` [1, N] beforehand.

    Each call returns (accepted tokens without the root int32 [1], path int32 [1, max_path]): buffers it writes.
    """
    child, sibling = links(parent[0].tolist())
    index, first, after = (torch.tensor([x], device=tokens.device) for x in (range(len(child)), child, sibling))
    predicts = torch.full((tokens.numel(),), -1, dtype=torch.int32, device=tokens.device)
    path = torch.full((1, max_path), -1, dtype=torch.int32, device=tokens.device)
    count = torch.zeros(1, dtype=torch.int32, device=tokens.device)

    def call() -> tuple[Tensor, Tensor]:
        module.verify_tree_greedy(
            predicts=predicts, accept_index=path, accept_token_num=count, candidates=tokens, retrive_index=index,
            retrive_next_token=first, retrive_next_sibling=after, target_predict=target,
        )  # fmt: skip
        return count, path

    return [call]


def links(parent: list[int]) -> tuple[list[int], list[int]]:
    """Per node its first child and its next sibling, -1 for none."""
    child, sibling = [-1] * len(parent), [-1] * len(parent)
    for i in reversed(range(1, len(parent))):
        sibling[i] = child[parent[i]]
        child[parent[i]] = i
    return child, sibling
