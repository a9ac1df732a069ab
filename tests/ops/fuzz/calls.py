"""Valid calls of every operator, drawn at random, each with the comparison of its result with the reference."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparrow_ext
from sparrow_ext.ops import (
    add_rms_norm,
    argmax_rows,
    draft_attention,
    gather_rows,
    gumbel_noise,
    hsr_project,
    kv_commit,
    lm_head_topk,
    repetition_penalty,
    rope_append,
    sample_rows,
    silu_mul,
    skinny_linear,
    text_compact,
    topk_lse,
    tree_accept,
    tree_attention,
    tree_expand,
    tree_mask,
    tree_rerank,
)
from tests.ops.checks import DTYPES, assert_close64, poison, random_tree, strided


class Draw:
    """The random choices of one call: `integer(low, high)` is where they come from, and `taken` what they were."""

    def __init__(self, integer: Callable[[int, int], int]):
        self._integer = integer
        self.taken: list[int] = []

    def integer(self, low: int, high: int) -> int:
        self.taken.append(self._integer(low, high))
        return self.taken[-1]

    def choice(self, options):
        return options[self.integer(0, len(options) - 1)]

    def flag(self) -> bool:
        return bool(self.integer(0, 1))

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.integer(0, 2**16))

    def dtype(self) -> torch.dtype:
        return self.choice(DTYPES)

    def layout(self, x: Tensor) -> Tensor:
        """The same values, sometimes inside a larger poisoned buffer."""
        return strided(x) if self.flag() else x

    def counts(self, batch: int, low: int, high: int) -> Tensor:
        return torch.tensor([self.integer(low, high) for _ in range(batch)], dtype=torch.int32)


def replay(taken: list[int]) -> Draw:
    """The same choices once more."""
    source = iter(taken)
    return Draw(lambda low, high: next(source))


@dataclass
class Call:
    """A call that must work: sparrow_ext.<op>(**arguments), then `check` of what it returned."""

    op: str
    arguments: dict[str, object]
    check: Callable[[object], None]
    written: tuple[str, ...] = ()

    def run(self) -> object:
        return getattr(sparrow_ext, self.op)(**self.arguments)


def equal(got, want, what: str = "") -> None:
    """Bit for bit, NaN included."""
    if isinstance(want, tuple | list):
        for i, (one, other) in enumerate(zip(got, want, strict=True)):
            equal(one, other, f"{what}[{i}]")
        return
    assert got.dtype == want.dtype and got.shape == want.shape, f"{what}: {got.dtype} {got.shape}"
    same = (got == want) | (got.isnan() & want.isnan()) if got.is_floating_point() else got == want
    assert bool(same.all()), what


def doubles(arguments: dict[str, object]) -> dict[str, object]:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def copies(arguments: dict[str, object]) -> dict[str, object]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def logits(draw: Draw, *shape: int) -> Tensor:
    """Normal values, with ties, infinities and NaN among them now and then."""
    g = draw.generator()
    x = torch.randn(shape, generator=g) * draw.choice([0.1, 3.0, 30.0])
    if draw.flag() and x.numel():
        for special in (float("nan"), float("inf"), -float("inf"), 0.0):
            x.view(-1)[torch.randint(0, x.numel(), (draw.integer(0, 2),), generator=g)] = special
    return x


def lead(draw: Draw, most: int = 6) -> list[int]:
    return [draw.integer(0, most)] if draw.flag() else [draw.integer(0, 3), draw.integer(0, most)]


def _argmax_rows(draw: Draw) -> Call:
    x = draw.layout(logits(draw, *lead(draw), draw.integer(1, 9000)).to(draw.dtype()))
    return Call("argmax_rows", {"logits": x}, lambda got: equal(got, argmax_rows.reference(x)))


def _add_rms_norm(draw: Draw) -> Call:
    g, dtype, shape = draw.generator(), draw.dtype(), [*lead(draw), draw.integer(0, 300)]
    x = torch.randn(shape, generator=g) * draw.choice([1e-4, 1.0, 100.0])
    residual = draw.layout(torch.randn(shape, generator=g).to(dtype)) if draw.flag() else None
    weight = torch.rand(shape[-1], generator=g).to(dtype)
    arguments = {"x": draw.layout(x.to(dtype)), "weight": weight, "eps": 1e-6, "residual": residual}

    def check(got) -> None:
        eager = add_rms_norm.eager(**arguments)
        equal(got[1], eager[1], "total")
        assert_close64(got[0], eager[0], add_rms_norm.reference(**doubles(arguments))[0])

    return Call("add_rms_norm", arguments, check)


def _silu_mul(draw: Draw) -> Call:
    g, dtype, shape = draw.generator(), draw.dtype(), [*lead(draw), draw.integer(0, 5000)]
    gate, up = (draw.layout((torch.randn(shape, generator=g) * 5).to(dtype)) for _ in range(2))
    eager, exact = silu_mul.eager(gate, up), silu_mul.reference(gate.double(), up.double())
    return Call("silu_mul", {"gate": gate, "up": up}, lambda got: assert_close64(got, eager, exact))


def _topk(draw: Draw, rows: list[int], vocab: int) -> dict[str, object]:
    """For [*rows, vocab] logits."""
    id_map = torch.arange(vocab) * 3 + 1 if draw.flag() else None
    bias = None
    if draw.flag():
        bias = draw.layout(torch.randn(rows[0] if len(rows) > 1 else 1, vocab, generator=draw.generator()) * 4)
    return {"k": draw.integer(1, min(32, vocab)), "id_map": id_map, "bias": bias}


def _gumbel_noise(draw: Draw) -> Call:
    vocab, batch, positions, g = draw.integer(1, 3000), draw.integer(0, 3), draw.integer(0, 4), draw.generator()
    ends = torch.iinfo(torch.int64)
    seed, position = (torch.randint(ends.min, ends.max, s, generator=g) for s in ((batch,), (batch, positions)))
    id_map = torch.randperm(4 * vocab, generator=g)[:vocab] if draw.flag() else None
    arguments = {"seed": seed, "position": position, "vocab": vocab, "id_map": id_map}

    def check(got) -> None:
        assert bool(((got - gumbel_noise.reference(**arguments)).abs() < 1e-6).all())

    return Call("gumbel_noise", arguments, check)


def _topk_lse(draw: Draw) -> Call:
    vocab = draw.integer(1, 9000)
    rows = lead(draw)
    x = draw.layout(logits(draw, *rows, vocab).to(draw.dtype()))
    rest = _topk(draw, rows, vocab)

    def check(got) -> None:
        plain, sums = {**rest, "bias": None}, topk_lse.biased(x.float(), rest["bias"])  # added in float32
        logp, ids, lse = topk_lse.reference(sums.double(), **plain)
        eager = topk_lse.eager(sums.nan_to_num(-torch.inf, torch.inf, -torch.inf), **plain)
        equal(got[1], ids, "ids")
        assert_close64(got[0], torch.where(eager[0].isfinite(), eager[0], logp.float()), logp, "logp")
        assert_close64(got[2], torch.where(eager[2].isfinite(), eager[2], lse.float()), lse, "lse")

    return Call("topk_lse", {"logits": x, **rest}, check)


def _lm_head_topk(draw: Draw) -> Call:
    g, dtype, width, vocab = draw.generator(), draw.dtype(), draw.integer(1, 80), draw.integer(1, 2200)
    rows = lead(draw, draw.choice([5, 70]))
    h = draw.layout(torch.randn(*rows, width, generator=g).to(dtype))
    weight = draw.layout(torch.randn(vocab, width, generator=g).to(dtype))
    rest = _topk(draw, rows, vocab)

    def check(got) -> None:
        plain = {**rest, "id_map": None}
        want, eager = (
            lm_head_topk.reference(h.double(), weight.double(), **plain),
            lm_head_topk.eager(h, weight, **plain),
        )
        assert_close64(got[0], eager[0], want[0], "logp")
        assert_close64(got[2], eager[2], want[2], "lse")
        if got[1].numel() == 0:
            return
        chosen = got[1] if rest["id_map"] is None else (got[1] - 1) // 3
        exact = topk_lse.biased(h.double() @ weight.double().T, rest["bias"])
        # Up to 64 rows logits are float32 sums; beyond, the library may round them to the dtype.
        eps = 1e-6 if rows and torch.Size(rows).numel() <= 64 else 2 * torch.finfo(dtype).eps
        apart = (exact.gather(-1, chosen) - exact.topk(chosen.shape[-1]).values).abs()
        assert bool((apart <= eps * exact.abs().max()).all()), "ids"

    return Call("lm_head_topk", {"h": h, "weight": weight, **rest}, check)


def _skinny_linear(draw: Draw) -> Call:
    g, dtype, rows, width, outputs = (
        draw.generator(),
        draw.dtype(),
        lead(draw, 70),
        draw.integer(0, 90),
        draw.integer(0, 100),
    )
    x = draw.layout(torch.randn(*rows, width, generator=g).to(dtype))
    weight = draw.layout(torch.randn(outputs, width, generator=g).to(dtype))
    bias = torch.randn(outputs, generator=g).to(dtype) if draw.flag() else None
    out = poison(torch.empty(*rows, outputs, dtype=dtype)) if draw.flag() else None
    arguments = {"x": x, "weight": weight, "bias": bias}

    def check(got) -> None:
        assert_close64(got, skinny_linear.eager(**arguments), skinny_linear.reference(**doubles(arguments)))

    return Call("skinny_linear", {**arguments, "out": out}, check, ("out",))


def _skinny_linear_group(draw: Draw) -> Call:
    g, dtype, rows, width = draw.generator(), draw.dtype(), lead(draw, 70), draw.integer(0, 90)
    x = draw.layout(torch.randn(*rows, width, generator=g).to(dtype))
    sizes = [draw.integer(0, 100) for _ in range(draw.integer(1, 3))]
    weights = [draw.layout(torch.randn(n, width, generator=g).to(dtype)) for n in sizes]
    biases = [torch.randn(n, generator=g).to(dtype) if draw.flag() else None for n in sizes]

    def check(got) -> None:
        for one, *layer in zip(got, weights, biases, strict=True):
            given = dict(zip(("x", "weight", "bias"), (x, *layer), strict=True))
            assert_close64(one, skinny_linear.eager(**given), skinny_linear.reference(**doubles(given)))

    return Call("skinny_linear_group", {"x": x, "weights": weights, "biases": biases}, check)


def _hsr_project(draw: Draw) -> Call:
    g, dtype = draw.generator(), draw.dtype()
    m, e, h, outputs, vocab, hidden_rows = (draw.integer(0, most) for most in (70, 40, 40, 100, 20, 20))
    vocab += 1
    arguments = {
        "token_ids": torch.randint(0, vocab, (m,), generator=g),
        "row_index": torch.randint(-1, hidden_rows, (m,), generator=g, dtype=torch.int32),
        "embed": draw.layout(torch.randn(vocab, e, generator=g).to(dtype)),
        "hidden": draw.layout(torch.randn(hidden_rows, h, generator=g).to(dtype)),
        "weight": draw.layout(torch.randn(outputs, e + h, generator=g).to(dtype)),
        "bias": torch.randn(outputs, generator=g).to(dtype) if draw.flag() else None,
        "num_rows": torch.tensor([draw.integer(0, m)], dtype=torch.int32) if draw.flag() else None,
    }

    def check(got) -> None:
        states = torch.cat([arguments["hidden"], torch.zeros(1, h, dtype=dtype)])  # row -1: zeros
        eager = hsr_project.eager(**{**arguments, "hidden": states})
        used = m if arguments["num_rows"] is None else int(arguments["num_rows"])
        want = hsr_project.reference(**doubles(arguments))
        assert_close64(got[:used], eager[:used], want[:used])
        assert not bool(got[used:].any())

    return Call("hsr_project", arguments, check)


def _sample_rows(draw: Draw) -> Call:
    b, n, vocab, g = draw.integer(0, 3), draw.integer(0, 4), draw.integer(1, 400), draw.generator()
    top_k = draw.counts(b, 0, vocab + 3) if draw.flag() else None
    top_p = torch.rand(b, generator=g) if draw.flag() else None
    arguments = {
        "logits": draw.layout(logits(draw, b, n, vocab).to(draw.dtype())),
        "temperature": torch.tensor([draw.choice([0.0, 0.05, 0.7, 8.0]) for _ in range(b)]),
        "seed": torch.randint(-(2**62), 2**62, (b,), generator=g),
        "position": torch.randint(-(2**62), 2**62, (b, n), generator=g),
        "top_k": top_k,
        "top_p": top_p,
    }

    def check(got) -> None:
        want = sample_rows.reference(**arguments)
        warm = torch.where(arguments["temperature"] > 0, arguments["temperature"], 1.0)
        rest = {k: arguments[k] for k in ("seed", "position", "top_k", "top_p")}
        best = sample_rows.noisy_scores(arguments["logits"], warm, **rest).nan_to_num(-1e300).topk(min(2, vocab)).values
        clear = (best[..., 0] - best[..., -1] > 1e-5) | (vocab == 1) | (arguments["temperature"][:, None] == 0)
        if top_p is not None:  # not where top_p lies next to a cumulative probability
            for nudge in (-1e-5, 1e-5):
                kept = [
                    sample_rows.kept(arguments["logits"], warm, top_k, p) for p in (top_p, (top_p + nudge).clamp(0, 1))
                ]
                clear &= (kept[0] == kept[1]).all(-1)
        equal(got[clear], want[clear])

    return Call("sample_rows", arguments, check)


def _repetition_penalty(draw: Draw) -> Call:
    b, n, vocab, g = draw.integer(0, 3), draw.integer(0, 70), draw.integer(1, 300), draw.generator()
    parents = [random_tree(n, g, forest=True) for _ in range(b)]
    arguments = {
        "logits": draw.layout(logits(draw, b, n, vocab)),
        "tokens": torch.randint(0, vocab, (b, n), generator=g),
        "anc": tree_mask.reference(torch.stack(parents) if b else torch.empty(0, n, dtype=torch.int32))[0],
        "seen": torch.rand(b, vocab, generator=g) < 0.3,
        "penalty": torch.rand(b, generator=g) + 0.5,
    }
    want = copies(arguments)
    repetition_penalty.eager(**want)
    return Call(
        "repetition_penalty", arguments, lambda got: equal(arguments["logits"], want["logits"], "logits"), ("logits",)
    )


def _text_compact(draw: Draw) -> Call:
    b, s = draw.integer(0, 4), draw.integer(0, 300)
    is_text = draw.layout(torch.rand(b, s, generator=draw.generator()) < draw.choice([0.0, 0.3, 1.0]))
    lens = draw.counts(b, 0, s)
    arguments = {"is_text": is_text, "seq_lens": lens, "max_text": s + draw.integer(0, 5)}
    return Call("text_compact", arguments, lambda got: equal(got, text_compact.reference(**arguments)))


def _gather_rows(draw: Draw) -> Call:
    b, s, cap, g = draw.integer(0, 3), draw.integer(1, 12), draw.integer(0, 12), draw.generator()
    row = [draw.integer(0, 9) for _ in range(draw.integer(0, 2))]
    most = draw.integer(0, 8)
    count = draw.counts(b, 0, min(most, cap))
    dtype = draw.choice([torch.float32, torch.uint8, torch.float64, torch.bfloat16])
    src = (torch.randn(b, s, *row, generator=g) * 50).to(dtype)
    arguments = {
        "src": src,
        "index": torch.randint(0, s, (b, most), generator=g, dtype=torch.int32),
        "count": count,
        "dst": torch.zeros(b, cap, *row, dtype=dtype),
        "dst_start": torch.tensor([draw.integer(0, cap - int(n)) for n in count], dtype=torch.int32),
    }
    want = copies(arguments)
    gather_rows.reference(**want)
    return Call("gather_rows", arguments, lambda got: equal(arguments["dst"], want["dst"]), ("dst",))


def _paths(draw: Draw, b: int, rows: int) -> dict[str, Tensor]:
    most, g = draw.integer(0, rows), draw.generator()
    num_path = draw.counts(b, 0, most)
    base = torch.tensor([draw.integer(0, rows - int(n)) for n in num_path], dtype=torch.int32)
    path = poison(torch.empty(b, most, dtype=torch.int32))
    for i, n in enumerate(num_path.tolist()):
        path[i, :n] = torch.randperm(rows - int(base[i]), generator=g)[:n].sort().values.int()
    new_lens = poison(torch.empty(b, dtype=torch.int32))
    return {"path": path, "num_path": num_path, "base_lens": base, "new_lens": new_lens}


def _kv(draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
    layers, b, rows, heads, dim = (draw.integer(low, most) for low, most in ((1, 3), (0, 3), (0, 20), (0, 3), (0, 9)))
    kv = torch.randn(layers, 2, b, rows, heads, dim, generator=draw.generator()).to(draw.dtype())
    if draw.flag():
        kv = kv.transpose(3, 4).contiguous().transpose(3, 4)
    return draw.layout(kv), _paths(draw, b, rows)


def _kv_commit(draw: Draw) -> Call:
    kv, rest = _kv(draw)
    arguments = {"kv": kv, **rest}
    want = copies(arguments)
    kv_commit.reference(**want)

    def check(got) -> None:
        equal((kv, rest["new_lens"]), (want["kv"], want["new_lens"]))

    return Call("kv_commit", arguments, check, ("kv", "new_lens"))


def _kv_commit_layers(draw: Draw) -> Call:
    kv, rest = _kv(draw)
    want = copies({"kv": kv, **rest})
    kv_commit.reference(**want)
    keys, values = list(kv[:, 0].unbind(0)), list(kv[:, 1].unbind(0))

    def check(got) -> None:
        equal((kv, rest["new_lens"]), (want["kv"], want["new_lens"]))

    return Call("kv_commit_layers", {"keys": keys, "values": values, **rest}, check, ("keys", "values", "new_lens"))


def _trees(draw: Draw, most: int = 128) -> Tensor:
    b, n, g = draw.integer(0, 3), draw.integer(0, most), draw.generator()
    rows = [random_tree(n, g, forest=True) for _ in range(b)]
    return torch.stack(rows) if b else torch.empty(0, n, dtype=torch.int32)


def _tree_mask(draw: Draw) -> Call:
    parent = _trees(draw)
    return Call("tree_mask", {"parent": parent}, lambda got: equal(got, tree_mask.reference(parent)))


def _tree_accept(draw: Draw) -> Call:
    parent, g, words = _trees(draw, 40), draw.generator(), draw.integer(1, 3)
    b, n = parent.shape
    arguments = {
        "tokens": torch.randint(0, words, (b, n), generator=g),
        "parent": parent,
        "target": torch.randint(0, words, (b, n), generator=g),
        "num_nodes": draw.counts(b, 0, n) if draw.flag() else None,
        "max_path": draw.integer(1, 50),
    }
    return Call("tree_accept", arguments, lambda got: equal(got, tree_accept.reference(**arguments)))


def _tree_expand(draw: Draw) -> Call:
    b, beam, level, g = draw.integer(0, 3), draw.integer(1, 8), draw.integer(0, 5), draw.generator()
    rows = 1 if level == 0 else beam
    k = draw.integer(-(-beam // rows), 9)
    slot = tree_expand.first_slot(k, level, beam)
    history = slot + rows * k + draw.integer(0, 5)
    arguments = {
        "logp": draw.layout(logits(draw, b, rows, k)),
        "ids": draw.layout(torch.randint(0, 99, (b, rows, k), generator=g)),
        "beam_score": logits(draw, b, rows),
        "beam_index": torch.randint(-1, max(slot, 0), (b, rows), generator=g, dtype=torch.int32),
        "beam_anc": torch.randint(0, 2**40, (b, rows, draw.integer(1, 2)), generator=g),
        "level": level,
        "beam": beam,
        "hist_score": torch.full((b, history), -torch.inf),
        "hist_id": torch.zeros(b, history, dtype=torch.int64),
        "hist_parent": torch.full((b, history), -1, dtype=torch.int32),
    }
    names = ("hist_score", "hist_id", "hist_parent")
    want = copies(arguments)
    outputs = tree_expand.reference(**want)

    def check(got) -> None:
        equal([*got, *(arguments[n] for n in names)], [*outputs, *(want[n] for n in names)])

    return Call("tree_expand", arguments, check, names)


def _tree_rerank(draw: Draw) -> Call:
    b, c, g = draw.integer(0, 3), draw.integer(0, 60), draw.generator()
    parents = [random_tree(c, g, forest=True) for _ in range(b)]
    arguments = {
        "root_token": torch.randint(0, 99, (b,), generator=g),
        "hist_score": logits(draw, b, c),
        "hist_id": torch.randint(0, 99, (b, c), generator=g),
        "hist_parent": torch.stack(parents) if b else torch.empty(0, c, dtype=torch.int32),
        "num_nodes": draw.integer(1, 128),
    }
    return Call("tree_rerank", arguments, lambda got: equal(got, tree_rerank.reference(**arguments)))


def _angles(draw: Draw, b: int, rows: int, dim: int) -> Tensor:
    phase = torch.rand(b, rows, dim // 2, generator=draw.generator()) * 1000
    return torch.cat((phase.cos(), phase.sin()), -1)


def _rope_append(draw: Draw) -> Call:
    b, n, h, k, half, dtype, g = *(draw.integer(0, most) for most in (3, 6, 5, 3, 20)), draw.dtype(), draw.generator()
    rows = n + draw.integer(1, 5)
    qkv = torch.randn(b, n, h + 2 * k, 2 * half, generator=g).to(dtype)  # as a fused projection leaves them
    q, key, value = qkv.split([h, k, k], 2)
    cache = torch.randn(2, b, rows, k, 2 * half, generator=g).to(dtype)
    if draw.flag():  # keys and values of a row side by side
        cache = cache.permute(1, 2, 0, 3, 4).contiguous().permute(2, 0, 1, 3, 4)
    arguments = {
        "q": q, "k": key, "v": value, "cos_sin": _angles(draw, b, n, 2 * half),
        "slots": torch.randint(-1, rows, (b, n), generator=g, dtype=torch.int32),
        "k_cache": cache[0], "v_cache": cache[1],
    }  # fmt: skip
    names = ("q", "k_cache", "v_cache")
    same, exact = copies(arguments), doubles(copies(arguments))
    rope_append.reference(**same)
    rope_append.reference(**exact)

    def check(got) -> None:
        for name in names:
            assert_close64(arguments[name], same[name], exact[name], name)

    return Call("rope_append", arguments, check, names)


def _words(draw: Draw, b: int, rows: int, slots: int) -> Tensor | None:
    """Any bits below `slots`, each row its own among them."""
    if draw.flag():
        return None
    bits = torch.rand(b, rows, (slots + 63) // 64 * 64, generator=draw.generator()) < 0.4
    bits[..., slots:] = False
    own = torch.arange(slots - rows, slots)
    bits[:, torch.arange(rows), own] = True
    return tree_mask.pack_words(bits)


def _caches(draw: Draw, b: int, rows: int, k: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cache = torch.randn(2, b, rows, k, dim, generator=draw.generator()).to(dtype)
    if draw.flag():
        cache = cache.transpose(2, 3).contiguous().transpose(2, 3)
    return draw.layout(cache[0]), draw.layout(cache[1])


def _tree_attention(draw: Draw) -> Call:
    b, n, k, group, dim, dtype = *(draw.integer(1, most) for most in (3, 70, 2, 3, 40)), draw.dtype()
    longest = draw.choice([0, 5, 70, 1100])
    k_cache, v_cache = _caches(draw, b, longest + n + draw.integer(0, 3), k, dim, dtype)
    arguments = {
        "q": draw.layout(torch.randn(b, n, k * group, dim, generator=draw.generator()).to(dtype)),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "prefix_lens": draw.counts(b, 0, longest),
        "num_nodes": draw.counts(b, 0, n) if draw.flag() else None,
        "anc": _words(draw, b, n, n),
        "max_prefix_len": draw.choice([None, longest, longest + 5]),
        "split_size": draw.choice([0, 0, 7, 128]),
    }

    def check(got) -> None:
        exact = {k: v for k, v in arguments.items() if k not in ("max_prefix_len", "split_size")}
        want, lse = tree_attention.reference(**doubles(exact))
        seen = tree_attention.visibility(exact["prefix_lens"], exact["num_nodes"], exact["anc"], n, k_cache.shape[1])
        eager = tree_attention.eager(exact["q"], k_cache, v_cache, seen).nan_to_num()
        assert_close64(got[0], eager, want, "out")
        scale = 1 + lse[lse.isfinite()].abs().max() if bool(lse.isfinite().any()) else 1.0
        assert bool(((got[1] == lse) | ((got[1] - lse).abs() <= 1e-4 * scale)).all()), "lse"

    return Call("tree_attention", arguments, check)


def _draft_attention(draw: Draw) -> Call:
    t, k, group, half, dtype = *(draw.integer(1, most) for most in (20, 2, 3, 20)), draw.dtype()
    length, start, d = draw.choice([0, 3, 70, 1100]), draw.integer(0, 60), 2 * half
    k_cache, v_cache = _caches(draw, 1, length + start + t + draw.integer(0, 3), k, d, dtype)
    anc, window, anchors = _words(draw, 1, t, start + t), draw.choice([0, 0, 1, 40]), draw.integer(0, 9)
    arguments = {
        "qkv": draw.layout(torch.randn(1, t, k * (group + 2) * d, generator=draw.generator()).to(dtype)),
        "cos_sin": _angles(draw, 1, t, d),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "seq_lens": torch.tensor([length], dtype=torch.int32),
        "tree_start": torch.tensor([start], dtype=torch.int32),
        "anc": anc,
        "window": window,
        "n_anchor": anchors,
    }
    seen = draft_attention.visibility(length, start, None if anc is None else anc[0], t, window, anchors)
    names = ("qkv", "cos_sin", "k_cache", "v_cache")
    same, exact = ({n: f({n: arguments[n]})[n].clone() for n in names} for f in (copies, doubles))
    eager = draft_attention.eager(*same.values(), length, start, seen)
    want = draft_attention.reference(*exact.values(), length, start, seen)

    def check(got) -> None:
        assert_close64(got, eager, want, "out")
        for name in ("k_cache", "v_cache"):
            assert_close64(arguments[name], same[name], exact[name], name)

    return Call("draft_attention", arguments, check, ("k_cache", "v_cache", "out", "workspace"))


MAKERS = {name[1:]: maker for name, maker in list(globals().items()) if name[1:] in sparrow_ext.__all__}
