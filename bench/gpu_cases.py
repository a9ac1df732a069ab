"""What is timed on a GPU: operators at 7B shapes, their floors and their peers. Device-agnostic, so tests run it small.

A case builds `copies` independent sets of buffers, so that a CUDA graph over them does not live in the L2 cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

import sparrow_ext
from bench import gpu_peers
from bench.gpu_loop_cases import loop_cases
from bench.gpu_work import Case, Sizes, Work
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


def cases(s: Sizes, prefixes: tuple[int, ...] = (512, 1536, 17000, 25000, 100000)) -> Iterator[Case]:
    """Every case; `prefixes` are tree_attention's."""
    for m in (1, 8, 16, 64):
        yield Case("hsr_project", f"M={m}", lambda device, copies, m=m: _hsr(s, m, device, copies))
    kv = s.kv_heads * s.head_dim
    for outputs, width in (
        (s.hidden, s.hidden),
        (kv, s.hidden),
        (s.ffn, s.hidden),
        (s.hidden, s.ffn),
        (s.vocab, s.hidden),
    ):
        for m in (1, 8, 31):
            name = f"{outputs} x {width}, M={m}"
            yield Case("skinny_linear", name, lambda d, n, m=m, o=outputs, w=width: _linear(s, m, o, w, d, n))
    for together, parts in (("q, k and v", (s.hidden, kv, kv)), ("gate and up", (s.ffn, s.ffn))):
        for m in (1, 8, 31):
            yield Case("skinny_linear", f"{together}, M={m}", lambda d, n, m=m, o=parts: _group(s, m, o, d, n))
    for vocab in (s.draft_vocab, s.vocab):
        for m in (1, 8):
            yield Case("lm_head_topk", f"M={m} V={vocab}", lambda d, n, m=m, v=vocab: _head(s, m, v, d, n))
    yield Case("topk_lse", f"10 x {s.vocab}", lambda d, n: _topk(s, d, n))
    for filters in ("", ", top-k 50 and top-p 0.9"):
        yield Case("sample_rows", f"26 x {s.vocab}{filters}", lambda d, n, f=bool(filters): _sample(s, f, d, n))
    yield Case("kv_commit", f"{s.layers} layers, path 4", lambda d, n: _commit(s, d, n))
    yield Case("tree_accept", "N=26", _accept)
    yield Case("draft_attention", "1536 rows, T=10", lambda d, n: _draft(s, 1536, 10, d, n))
    for length in prefixes:
        for n in (1, 8, 16, 32, 64):
            name = f"prefix {length}, N={n}"
            yield Case("tree_attention", name, lambda d, k, p=length, n=n: _tree(s, p, n, d, k))
    yield from loop_cases(s)


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


def _few(copies: int, bytes_each: int) -> int:
    """Copies enough to pass through an L2 cache, at most 1.5 GB."""
    return max(1, min(copies, int(1.5e9) // bytes_each))


def _linear(s: Sizes, m: int, outputs: int, width: int, device: torch.device, copies: int) -> Work:
    x = _randn(m, width, device=device)
    few = _few(copies, 2 * outputs * width)
    weights = [_randn(outputs, width, device=device).mul_(width**-0.5) for _ in range(few)]
    work = Work([lambda w=w: sparrow_ext.skinny_linear(x, w) for w in weights], weights[0].nbytes)
    work.flops = 2 * m * outputs * width
    work.peers["eager"] = [lambda w=w: skinny_linear.eager(x, w) for w in weights]
    return work


def _group(s: Sizes, m: int, outputs: tuple[int, ...], device: torch.device, copies: int) -> Work:
    """Weights that share their rows: one call beside a call for each."""
    x = _randn(m, s.hidden, device=device)
    few = _few(copies, 2 * sum(outputs) * s.hidden)
    every = [_randn(sum(outputs), s.hidden, device=device).mul_(s.hidden**-0.5) for _ in range(few)]
    weights = [list(w.split(outputs)) for w in every]
    work = Work([lambda w=w: sparrow_ext.skinny_linear_group(x, w) for w in weights], every[0].nbytes)
    work.flops = 2 * m * sum(outputs) * s.hidden
    work.peers["eager"] = [lambda w=w: skinny_linear.eager_group(x, w) for w in weights]
    work.peers["one by one"] = [lambda w=w: [sparrow_ext.skinny_linear(x, one) for one in w] for w in weights]
    return work


def _head(s: Sizes, m: int, vocab: int, device: torch.device, copies: int) -> Work:
    h = _randn(m, s.hidden, device=device)
    few = _few(min(copies, 4), 2 * vocab * s.hidden)
    weights = [_randn(vocab, s.hidden, device=device).mul_(s.hidden**-0.5) for _ in range(few)]
    work = Work([lambda w=w: sparrow_ext.lm_head_topk(h, w, 10) for w in weights], weights[0].nbytes)
    work.flops = 2 * m * s.hidden * vocab
    work.peers["eager"] = [lambda w=w: lm_head_topk.eager(h, w, 10) for w in weights]
    return work


def _topk(s: Sizes, device: torch.device, copies: int) -> Work:
    rows = [_randn(10, s.vocab, device=device) for _ in range(copies)]
    work = Work([lambda x=x: sparrow_ext.topk_lse(x, 10) for x in rows], rows[0].nbytes)
    work.peers["eager"] = [lambda x=x: topk_lse.eager(x, 10) for x in rows]
    return work


def _sample(s: Sizes, filtered: bool, device: torch.device, copies: int) -> Work:
    rows = [_randn(1, 26, s.vocab, device=device) * 3 for _ in range(min(copies, 8))]
    one = torch.full((1,), 0.8, device=device)
    seed, position = torch.zeros(1, dtype=torch.int64, device=device), torch.arange(26, device=device)[None]
    more = (torch.full((1,), 50, dtype=torch.int32, device=device), torch.full((1,), 0.9, device=device))
    args = (one, seed, position, *(more if filtered else ()))
    work = Work([lambda x=x: sparrow_ext.sample_rows(x, *args) for x in rows], rows[0].nbytes, same=False)
    work.peers["eager"] = [lambda x=x: sample_rows.eager(x, *args) for x in rows]
    if filtered:
        work.on_host.add("eager")
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
    work.on_host.add("eager")
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
    work.on_host.add("eager")
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
    work.compiled.add("flex attention")
