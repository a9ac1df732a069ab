"""What is timed on a GPU: operators at 7B shapes, their floors and their peers. Device-agnostic, so tests run it small.

A case builds `copies` independent sets of buffers, so that a CUDA graph over them does not live in the L2 cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

import sparrow_ext
from bench import gpu_peers
from bench.gpu_peers import Call
from sparrow_ext.ops import (
    draft_attention,
    hsr_project,
    kv_commit,
    lm_head_topk,
    sample_rows,
    skinny_linear,
    topk_lse,
    tree_accept,
    tree_attention,
)
from sparrow_ext.ops.tree_mask import tree_mask


@dataclass(frozen=True)
class Sizes:
    """A 7B target: hidden E, V vocabulary, L layers, H query and K key heads of D."""

    hidden: int = 3584
    vocab: int = 152064
    draft_vocab: int = 32000
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128


@dataclass
class Work:
    """One case, ready to run: a call per copy, the floor's terms, peers' calls.

    Attributes:
        ours: one call per copy of the buffers.
        bytes, flops: of one call: what must be read or written, and multiply-adds times two on tensor cores.
        peers: name -> calls.
        missing: name -> why that peer is not among them ("not installed", or its error).
        same: the peers' results are ours (not where they draw other noise).
        unpack: name -> what makes a peer's result comparable to ours.
    """

    ours: list[Call]
    bytes: int
    flops: int = 0
    peers: dict[str, list[Call]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    same: bool = True
    unpack: dict[str, Callable] = field(default_factory=dict)

    def add(self, name: str, calls: list[Call] | str) -> None:
        """Takes what gpu_peers.load returned."""
        if isinstance(calls, str):
            self.missing[name] = calls
        else:
            self.peers[name] = calls

    def disagreement(self, name: str) -> str | None:
        """None, or how the first result of that peer differs from ours.

        Integers must be equal where there is nothing else; floats may differ by 5 % of their largest (beside them ids
        are not compared: tied logits may come in another order).
        """
        if not self.same:
            return None
        theirs = _as_tuple(self.unpack.get(name, lambda x: x)(self.peers[name][0]()))
        pairs = list(zip(_as_tuple(self.ours[0]()), theirs, strict=False))
        if any(ours.is_floating_point() for ours, _ in pairs):
            pairs = [pair for pair in pairs if pair[0].is_floating_point()]
        for ours, other in pairs:
            limit = 0.05 * float(ours.float().abs().max()) if ours.is_floating_point() else 0.0
            apart = float((ours.double() - other.reshape(ours.shape).double()).abs().max())
            if not apart <= limit:
                return f"its result differs from ours by {apart:.3g} (allowed: {limit:.3g})"
        return None


def _as_tuple(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    build: Callable[[torch.device, int], Work]


def cases(s: Sizes, prefixes: tuple[int, ...] = (512, 1536, 17000, 25000, 100000)) -> Iterator[Case]:
    """Every case; `prefixes` are tree_attention's."""
    for m in (1, 8, 16, 64):
        yield Case("hsr_project", f"M={m}", lambda device, copies, m=m: _hsr(s, m, device, copies))
    for m in (1, 10, 26, 64):
        yield Case("skinny_linear", f"M={m}", lambda device, copies, m=m: _linear(s, m, device, copies))
    for m in (1, 10):
        yield Case("lm_head_topk", f"M={m} V={s.draft_vocab}", lambda d, n, m=m: _head(s, m, d, n))
    yield Case("topk_lse", f"10 x {s.vocab}", lambda d, n: _topk(s, d, n))
    yield Case("sample_rows", f"26 x {s.vocab}", lambda d, n: _sample(s, d, n))
    yield Case("kv_commit", f"{s.layers} layers, path 4", lambda d, n: _commit(s, d, n))
    yield Case("tree_accept", "N=26", _accept)
    yield Case("draft_attention", "1536 rows, T=10", lambda d, n: _draft(s, 1536, 10, d, n))
    for length in prefixes:
        for n in (1, 8, 16, 32, 64):
            name = f"prefix {length}, N={n}"
            yield Case("tree_attention", name, lambda d, k, p=length, n=n: _tree(s, p, n, d, k))


def _randn(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def _hsr(s: Sizes, m: int, device: torch.device, copies: int) -> Work:
    embed, hidden = _randn(4096, s.hidden, device=device), _randn(m, s.hidden, device=device)
    ids = torch.randint(0, 4096, (m,), device=device)
    index = torch.arange(m, dtype=torch.int32, device=device)
    weights = [_randn(s.hidden, 2 * s.hidden, device=device) * 0.01 for _ in range(copies)]
    work = Work([lambda w=w: sparrow_ext.hsr_project(ids, index, embed, hidden, w) for w in weights], weights[0].nbytes)
    work.flops = 4 * m * s.hidden * s.hidden
    work.peers["eager"] = [lambda w=w: hsr_project.eager(ids, index, embed, hidden, w) for w in weights]
    folded = [(hsr_project.fold_embedding(embed, w), w[:, s.hidden :]) for w in weights]
    work.peers["folded"] = [lambda f=f: hsr_project.hsr_project_folded(ids, index, f[0], hidden, f[1]) for f in folded]
    return work


def _linear(s: Sizes, m: int, device: torch.device, copies: int) -> Work:
    x = _randn(m, s.hidden, device=device)
    weights = [_randn(s.hidden, s.hidden, device=device) * 0.02 for _ in range(copies)]
    work = Work([lambda w=w: sparrow_ext.skinny_linear(x, w) for w in weights], weights[0].nbytes)
    work.flops = 2 * m * s.hidden * s.hidden
    work.peers["eager"] = [lambda w=w: skinny_linear.eager(x, w) for w in weights]
    return work


def _head(s: Sizes, m: int, device: torch.device, copies: int) -> Work:
    h = _randn(m, s.hidden, device=device)
    weights = [_randn(s.draft_vocab, s.hidden, device=device) * 0.02 for _ in range(min(copies, 4))]
    work = Work([lambda w=w: sparrow_ext.lm_head_topk(h, w, 10) for w in weights], weights[0].nbytes)
    work.flops = 2 * m * s.hidden * s.draft_vocab
    work.peers["eager"] = [lambda w=w: lm_head_topk.eager(h, w, 10) for w in weights]
    return work


def _topk(s: Sizes, device: torch.device, copies: int) -> Work:
    rows = [_randn(10, s.vocab, device=device) for _ in range(copies)]
    work = Work([lambda x=x: sparrow_ext.topk_lse(x, 10) for x in rows], rows[0].nbytes)
    work.peers["eager"] = [lambda x=x: topk_lse.eager(x, 10) for x in rows]
    return work


def _sample(s: Sizes, device: torch.device, copies: int) -> Work:
    rows = [_randn(1, 26, s.vocab, device=device) * 3 for _ in range(min(copies, 8))]
    one = torch.full((1,), 0.8, device=device)
    seed, position = torch.zeros(1, dtype=torch.int64, device=device), torch.arange(26, device=device)[None]
    work = Work([lambda x=x: sparrow_ext.sample_rows(x, one, seed, position) for x in rows], rows[0].nbytes, same=False)
    work.peers["eager"] = [lambda x=x: sample_rows.eager(x, one, seed, position) for x in rows]
    return work


def _commit(s: Sizes, device: torch.device, copies: int) -> Work:
    shape = (s.layers, 2, 1, s.kv_heads, 2048, s.head_dim)
    caches = [_randn(*shape, device=device).transpose(3, 4) for _ in range(min(copies, 4))]
    path = torch.tensor([[0, 3, 9, 20]], dtype=torch.int32, device=device)
    count, base = (torch.full((1,), n, dtype=torch.int32, device=device) for n in (4, 1536))
    new = torch.empty_like(base)
    work = Work([lambda c=c: sparrow_ext.kv_commit(c, path, count, base, new) for c in caches], 0, same=False)
    work.bytes = 2 * 3 * s.layers * 2 * s.kv_heads * s.head_dim * 2  # three rows move: read and written
    work.peers["eager"] = [lambda c=c: kv_commit.eager(c, path, count, base, new) for c in caches]
    layers = [(list(c[:, 0].unbind(0)), list(c[:, 1].unbind(0))) for c in caches]
    work.peers["kv_commit_layers"] = [
        lambda kv=kv: sparrow_ext.kv_commit_layers(*kv, path, count, base, new) for kv in layers
    ]
    return work


def _accept(device: torch.device, copies: int) -> Work:
    parent = torch.tensor([[-1, *((i - 1) // 3 for i in range(1, 26))]], dtype=torch.int32, device=device)
    tokens, target = (torch.randint(0, 5, (1, 26), device=device) for _ in range(2))
    work = Work([lambda: sparrow_ext.tree_accept(tokens, parent, target, None, 6)] * copies, 26 * 20)
    work.peers["eager"] = [lambda: tree_accept.eager(tokens, parent, target, None, 6)]
    if device.type == "cuda":
        work.add(
            "sglang", gpu_peers.load("sgl_kernel", lambda m: gpu_peers.sglang_accept(m, tokens, parent, target, 6))
        )
        work.unpack["sglang"] = lambda found: (found[0] + 1, found[1])
    return work


def _draft(s: Sizes, rows: int, t: int, device: torch.device, copies: int) -> Work:
    width = (s.heads + 2 * s.kv_heads) * s.head_dim
    qkv, cos_sin = _randn(1, t, width, device=device), torch.randn(1, t, s.head_dim, device=device)
    shape = (1, rows + 128, s.kv_heads, s.head_dim)
    caches = [(_randn(*shape, device=device), _randn(*shape, device=device)) for _ in range(copies)]
    lens = torch.full((1,), rows, dtype=torch.int32, device=device)
    start = torch.zeros(1, dtype=torch.int32, device=device)
    visible = torch.ones(t, rows + t, dtype=torch.bool, device=device)
    visible[:, rows:] = torch.ones(t, t, dtype=torch.bool, device=device).tril()
    work = Work([lambda c=c: sparrow_ext.draft_attention(qkv, cos_sin, *c, lens, start) for c in caches], 0)
    work.bytes = 2 * rows * s.kv_heads * s.head_dim * 2
    work.flops = 4 * t * s.heads * rows * s.head_dim
    work.peers["eager"] = [lambda c=c: draft_attention.eager(qkv, cos_sin, *c, rows, 0, visible) for c in caches]
    return work


def _tree(s: Sizes, prefix: int, nodes: int, device: torch.device, copies: int) -> Work:
    q = _randn(1, nodes, s.heads, s.head_dim, device=device)
    buffers = [_randn(2, 1, s.kv_heads, prefix + nodes, s.head_dim, device=device) for _ in range(copies)]
    caches = [(b[0].transpose(1, 2), b[1].transpose(1, 2)) for b in buffers]
    lens = torch.full((1,), prefix, dtype=torch.int32, device=device)
    parent = torch.tensor([[-1, *((i - 1) // 2 for i in range(1, nodes))]], dtype=torch.int32)
    anc = tree_mask(parent)[0].to(device)
    visible = tree_attention.visibility(lens, None, anc, nodes, prefix + nodes)
    work = Work(
        [lambda c=c: sparrow_ext.tree_attention(q, *c, lens, anc=anc, max_prefix_len=prefix) for c in caches],
        buffers[0].nbytes,
    )
    work.flops = 4 * nodes * s.heads * (prefix + nodes) * s.head_dim
    work.peers["eager"] = [lambda c=c: tree_attention.eager(q, *c, visible) for c in caches]
    if device.type == "cuda":
        _tree_peers(work, q, caches, prefix, visible)
    return work


def _tree_peers(work: Work, q: Tensor, caches: gpu_peers.Caches, prefix: int, visible: Tensor) -> None:
    """FlexAttention, FlashInfer, xformers and, for one row, flash-attn: those that are installed."""
    peers = {
        "flex attention": ("torch.nn.attention.flex_attention", lambda m: gpu_peers.flex_tree(m, q, caches, visible)),
        "flashinfer": ("flashinfer", lambda m: gpu_peers.flashinfer_tree(m, q, caches, visible)),
        "xformers": (
            "xformers.ops.tree_attention",
            lambda m: gpu_peers.xformers_tree(m, q, caches, prefix, visible),
        ),
    }
    if q.shape[1] == 1:
        peers["flash-attn (decode)"] = ("flash_attn", lambda m: gpu_peers.flash_decode(m, q, caches))
    for name, (module, build) in peers.items():
        work.add(name, gpu_peers.load(module, build))
