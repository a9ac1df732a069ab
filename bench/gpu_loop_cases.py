"""The loop's small operators for bench/gpu_cases.py: what runs between the matrix products of a round."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import sparrow_ext
from bench.gpu_work import Case, Sizes, Work
from sparrow_ext.ops import (
    add_rms_norm,
    argmax_rows,
    gather_rows,
    gumbel_noise,
    repetition_penalty,
    rope_append,
    silu_mul,
    text_compact,
    tree_expand,
    tree_mask,
    tree_rerank,
)

BUILDERS: list[tuple[str, str, Callable]] = []  # operator, name, what builds its Work


def case(op: str, name: str) -> Callable[[Callable], Callable]:
    """Registers a builder (sizes, device, copies) -> Work; the name is formatted with the sizes as `s`."""

    def register(build: Callable) -> Callable:
        BUILDERS.append((op, name, build))
        return build

    return register


def loop_cases(s: Sizes) -> Iterator[Case]:
    for op, name, build in BUILDERS:
        yield Case(op, name.format(s=s), lambda device, copies, build=build: build(s, device, copies))


def _tree(nodes: int, device: torch.device) -> Tensor:
    return torch.tensor([[-1, *((i - 1) // 3 for i in range(1, nodes))]], dtype=torch.int32, device=device)


def _ints(*x: int, device: torch.device) -> Tensor:
    return torch.tensor(x, dtype=torch.int32, device=device)


@case("add_rms_norm", "31 x {s.hidden}")
def _add_norm(s: Sizes, device: torch.device, copies: int) -> Work:
    weight = torch.ones(s.hidden, device=device).bfloat16()
    rows = [torch.randn(2, 1, 31, s.hidden, device=device).bfloat16() for _ in range(copies)]
    work = Work([lambda x=x: sparrow_ext.add_rms_norm(x[0], weight, 1e-6, x[1]) for x in rows], 2 * rows[0].nbytes)
    work.peers["eager"] = [lambda x=x: add_rms_norm.eager(x[0], weight, 1e-6, x[1]) for x in rows]
    return work


@case("gumbel_noise", "5 x {s.vocab}")
def _noise(s: Sizes, device: torch.device, copies: int) -> Work:
    seed, position = torch.zeros(1, dtype=torch.int64, device=device), torch.arange(5, device=device)[None]
    work = Work([lambda: sparrow_ext.gumbel_noise(seed, position, s.vocab)], 5 * 4 * s.vocab, same=False)
    work.peers["eager"] = [lambda: gumbel_noise.eager(seed, position, s.vocab)]
    return work


@case("silu_mul", "31 x {s.ffn}")
def _silu(s: Sizes, device: torch.device, copies: int) -> Work:
    rows = [torch.randn(2, 1, 31, s.ffn, device=device).bfloat16() for _ in range(copies)]
    work = Work([lambda x=x: sparrow_ext.silu_mul(x[0], x[1]) for x in rows], rows[0].nbytes * 3 // 2)
    work.peers["eager"] = [lambda x=x: silu_mul.eager(x[0], x[1]) for x in rows]
    return work


@case("argmax_rows", "31 x {s.vocab}")
def _argmax(s: Sizes, device: torch.device, copies: int) -> Work:
    rows = [torch.randn(1, 31, s.vocab, device=device).bfloat16() for _ in range(min(copies, 8))]
    work = Work([lambda x=x: sparrow_ext.argmax_rows(x) for x in rows], rows[0].nbytes, same=False)  # ties in bfloat16
    work.peers["eager"] = [lambda x=x: argmax_rows.eager(x) for x in rows]
    return work


@case("gather_rows", "5 of 64 rows")
def _gather(s: Sizes, device: torch.device, copies: int) -> Work:
    src, dst = (torch.randn(1, 64, s.hidden, device=device).bfloat16() for _ in range(2))
    index, count, start = (_ints(*x, device=device) for x in ((3, 9, 20, 40, 63), (5,), (7,)))
    work = Work([lambda: sparrow_ext.gather_rows(src, index[None], count, dst, start)] * copies, 0, same=False)
    work.bytes = 2 * 5 * s.hidden * 2
    work.peers["eager"] = [lambda: gather_rows.eager(src, index[None], count, dst, start)] * copies
    work.on_host.add("eager")
    return work


@case("repetition_penalty", "26 x {s.vocab}")
def _penalty(s: Sizes, device: torch.device, copies: int) -> Work:
    rows = [torch.randn(1, 26, s.vocab, device=device) for _ in range(min(copies, 8))]
    tokens = torch.randint(0, s.vocab, (1, 26), device=device)
    anc, _ = sparrow_ext.tree_mask(_tree(26, device))
    seen = torch.zeros(1, s.vocab, dtype=torch.bool, device=device)
    seen[0, :: max(1, s.vocab // 500)] = True
    penalty = torch.full((1,), 1.0001, device=device)
    work = Work([lambda x=x: sparrow_ext.repetition_penalty(x, tokens, anc, seen, penalty) for x in rows], s.vocab)
    work.peers["eager"] = [lambda x=x: repetition_penalty.eager(x, tokens, anc, seen, penalty) for x in rows]
    work.same = False  # in place
    return work


@case("rope_append", "31 rows")
def _rope(s: Sizes, device: torch.device, copies: int) -> Work:
    heads = (s.heads, s.kv_heads, s.kv_heads)
    q, k, v = (torch.randn(1, 31, h, s.head_dim, device=device).bfloat16() for h in heads)
    cos_sin = torch.rand(1, 31, s.head_dim, device=device)
    caches = [torch.zeros(2, 1, 64, s.kv_heads, s.head_dim, device=device).bfloat16() for _ in range(copies)]
    slots = torch.arange(9, 40, dtype=torch.int32, device=device)[None]
    work = Work([lambda c=c: sparrow_ext.rope_append(q, k, v, cos_sin, slots, c[0], c[1]) for c in caches], 0)
    work.bytes, work.same = 2 * (q.nbytes + k.nbytes + v.nbytes), False  # in place
    work.peers["eager"] = [lambda c=c: rope_append.eager(q, k, v, cos_sin, 9, c[0], c[1]) for c in caches]
    return work


@case("text_compact", "26000 rows, 460 of text")
def _compact(s: Sizes, device: torch.device, copies: int) -> Work:
    is_text = torch.zeros(1, 26000, dtype=torch.bool, device=device)
    is_text[:, :60] = is_text[:, -400:] = True
    length = _ints(26000, device=device)
    work = Work([lambda: sparrow_ext.text_compact(is_text, length, 460)] * copies, 26000)
    work.peers["eager"] = [lambda: text_compact.eager(is_text, length, 460)] * copies
    work.on_host.add("eager")
    return work


@case("tree_expand", "level 3, 8 x 8")
def _expand(s: Sizes, device: torch.device, copies: int) -> Work:
    logp = -torch.rand(1, 8, 8, device=device).sort(-1).values
    ids = torch.randint(0, s.vocab, (1, 8, 8), device=device)
    score, index = -torch.rand(1, 8, device=device), torch.full((1, 8), -1, dtype=torch.int32, device=device)
    anc = torch.zeros(1, 8, 1, dtype=torch.int64, device=device)
    history = [torch.zeros(1, 200, dtype=t, device=device) for t in (torch.float32, torch.int64, torch.int32)]
    args = (logp, ids, score, index, anc, 3, 8, *history)
    work = Work(
        [lambda: sparrow_ext.tree_expand(*args)] * copies, logp.nbytes + ids.nbytes, same=False
    )  # writes history
    work.peers["eager"] = [lambda: tree_expand.eager(*args)] * copies
    return work


@case("tree_mask", "N=31")
def _mask(s: Sizes, device: torch.device, copies: int) -> Work:
    parent = _tree(31, device)
    work = Work([lambda: sparrow_ext.tree_mask(parent)] * copies, parent.nbytes + 31 * 12)
    work.peers["eager"] = [lambda: tree_mask.eager(parent)] * copies
    return work


@case("tree_rerank", "31 of 200")
def _rerank(s: Sizes, device: torch.device, copies: int) -> Work:
    parent = (torch.arange(200, dtype=torch.int32, device=device) // 8 - 1)[None]
    score = -(torch.arange(200, device=device) + 1.0).log()[None]
    ids, root = torch.randint(0, s.vocab, (1, 200), device=device), torch.zeros(1, dtype=torch.int64, device=device)
    work = Work([lambda: sparrow_ext.tree_rerank(root, score, ids, parent, 31)] * copies, 200 * 16)
    work.peers["eager"] = [lambda: tree_rerank.eager(root, score, ids, parent, 31)] * copies
    return work
