"""GPU checks: the matrix-unit kernels at a 7B target's sizes beside float64, and what a row's bits depend on."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sparrow_ext
from bench.gpu_work import Sizes
from bench.gpu_worker import Case, Place
from sparrow_ext.ops import tree_attention as tree_op
from sparrow_ext.ops.tree_mask import tree_mask

SMALL = Sizes(hidden=256, draft_vocab=1000, heads=4, kv_heads=2, head_dim=64)


def cases(place: Place) -> Iterator[Case]:
    s = SMALL if place.small else Sizes()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for prefix, n in (
            ((130, 1), (200, 8)) if place.small else ((130, 1), (1500, 8), (1537, 31), (9001, 64), (20000, 26))
        ):
            yield Case(
                f"tree_attention {name} prefix {prefix} N={n}", lambda d=dtype, p=prefix, n=n: tree(place, s, d, p, n)
            )
        for m in (1, 8, 31, 64, 65):
            yield Case(f"skinny_linear {name} M={m}", lambda d=dtype, m=m: linear(place, s, d, m, s.hidden))
            yield Case(f"hsr_project {name} M={m}", lambda d=dtype, m=m: hsr(place, s, d, m))
        yield Case(f"skinny_linear {name} M=31, whole blocks", lambda d=dtype: linear(place, s, d, 31, 18944))
        kv = s.kv_heads * s.head_dim
        for together, parts in (("q, k and v", (s.hidden, kv, kv)), ("gate and up", (s.ffn, s.ffn))):
            for m in (1, 8, 31):
                yield Case(
                    f"skinny_linear {name} {together} M={m}", lambda d=dtype, m=m, o=parts: group(place, s, d, m, o)
                )
        for m in (1, 10, 33):
            yield Case(f"lm_head_topk {name} M={m}", lambda d=dtype, m=m: head(place, s, d, m))


def _randn(place: Place, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    generator = torch.Generator(place.device).manual_seed(sum(shape))
    return (torch.randn(*shape, device=place.device, generator=generator) * scale).to(dtype)


def _check(ours: Tensor, eager: Tensor, want: Tensor) -> dict[str, Any]:
    """As the tests of the operators: twice the error of the usual composition, and four units in the last place."""
    error, base = (float((x.double() - want).abs().max()) for x in (ours, eager))
    limit = 2 * base + 4 * torch.finfo(ours.dtype).eps * float(want.abs().max())
    assert error <= limit, f"error {error:.3g} > {limit:.3g} (eager: {base:.3g})"
    return {"error": error, "limit": limit}


def tree(place: Place, s: Sizes, dtype: torch.dtype, prefix: int, nodes: int) -> dict[str, Any]:
    q = _randn(place, 1, nodes, s.heads, s.head_dim, dtype=dtype)
    k, v = (x.transpose(1, 2) for x in _randn(place, 2, 1, s.kv_heads, prefix + nodes, s.head_dim, dtype=dtype))
    lens = torch.full((1,), prefix, dtype=torch.int32, device=place.device)
    parent = torch.tensor([[-1, *((i - 1) // 2 for i in range(1, nodes))]], dtype=torch.int32)
    anc = tree_mask(parent)[0].to(place.device)
    out, again = (sparrow_ext.tree_attention(q, k, v, lens, anc=anc, max_prefix_len=prefix)[0] for _ in range(2))
    assert torch.equal(out, again), "two runs give different bits"
    one = sparrow_ext.tree_attention(
        q[:, :1], k, v, lens, anc=anc[:, :1, :1].contiguous(), max_prefix_len=prefix
    )[0]  # fmt: skip
    visible = tree_op.visibility(lens, None, anc, nodes, prefix + nodes)
    want = tree_op.reference(q.double(), k.double(), v.double(), lens, None, anc)[0]
    found = _check(out, tree_op.eager(q, k, v, visible), want)
    return found | {"the root alone has its bits": torch.equal(one, out[:, :1])}


def linear(place: Place, s: Sizes, dtype: torch.dtype, m: int, outputs: int) -> dict[str, Any]:
    x = _randn(place, m, s.hidden, dtype=dtype)
    w = _randn(place, outputs, s.hidden, dtype=dtype, scale=s.hidden**-0.5)
    out = sparrow_ext.skinny_linear(x, w)
    if m <= 64 or dtype != torch.bfloat16:  # beyond, the library multiplies
        assert torch.equal(out[:1], sparrow_ext.skinny_linear(x[:1], w)), "a row's bits depend on its company"
    return _check(out, F.linear(x, w), x.double() @ w.double().T)


def group(place: Place, s: Sizes, dtype: torch.dtype, m: int, outputs: tuple[int, ...]) -> dict[str, Any]:
    x = _randn(place, m, s.hidden, dtype=dtype)
    every = _randn(place, sum(outputs), s.hidden, dtype=dtype, scale=s.hidden**-0.5)
    weights = list(every.split(outputs))
    biases = [_randn(place, outputs[0], dtype=dtype), *[None] * (len(outputs) - 1)]
    out = sparrow_ext.skinny_linear_group(x, weights, biases)
    for one, *layer in zip(out, weights, biases, strict=True):
        assert torch.equal(one, sparrow_ext.skinny_linear(x, *layer)), "a weight's bits depend on the others"
    more = torch.cat([biases[0], biases[0].new_zeros(sum(outputs[1:]))])
    return _check(torch.cat(out, 1), F.linear(x, every, more), x.double() @ every.double().T + more.double())


def hsr(place: Place, s: Sizes, dtype: torch.dtype, m: int) -> dict[str, Any]:
    embed, hidden = _randn(place, 512, s.hidden, dtype=dtype), _randn(place, m, s.hidden, dtype=dtype)
    w = _randn(place, s.hidden, 2 * s.hidden, dtype=dtype, scale=s.hidden**-0.5)
    ids = torch.arange(m, device=place.device) * 7 % 512
    index = torch.arange(m, dtype=torch.int32, device=place.device).flip(0).contiguous()
    out = sparrow_ext.hsr_project(ids, index, embed, hidden, w)
    both = torch.cat([embed[ids], hidden[index.long()]], 1)
    return _check(out, F.linear(both, w), both.double() @ w.double().T)


def head(place: Place, s: Sizes, dtype: torch.dtype, m: int) -> dict[str, Any]:
    h = _randn(place, m, s.hidden, dtype=dtype)
    w = _randn(place, s.draft_vocab, s.hidden, dtype=dtype, scale=s.hidden**-0.5)
    logp, ids, _ = sparrow_ext.lm_head_topk(h, w, 10)
    every = (h.double() @ w.double().T).log_softmax(-1)
    error = max(float((logp.double() - x).abs().max()) for x in (every.topk(10).values, every.gather(1, ids)))
    assert error < 2e-3, f"error {error:.3g}"
    return {"error": error, "limit": 2e-3}
