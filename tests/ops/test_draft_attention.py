import pytest
import torch

from sparrow_ext.ops import draft_attention as op
from sparrow_ext.ops.rope_append import rope_append
from sparrow_ext.ops.tree_attention import tree_attention
from tests.ops.attention_cases import angles, caches, clean, ints, poison_rows, words
from tests.ops.checks import DTYPES, assert_close64, available_isas, compiled, cpu_isa, poison, strided

# T, H, K, D, text rows, tree_start, causal, window, anchors
CASES = [
    (1, 7, 1, 128, 1500, 0, True, 0, 0),
    (10, 7, 1, 128, 300, 10, False, 0, 0),
    (10, 4, 2, 64, 0, 0, False, 0, 0),
    (64, 4, 4, 32, 64, 64, False, 0, 0),
    (128, 2, 1, 16, 1025, 0, True, 0, 0),
    (3, 8, 2, 80, 65, 60, True, 0, 0),
    (5, 3, 1, 24, 200, 3, False, 64, 4),
    (5, 4, 2, 16, 2500, 3, True, 1100, 70),
    (2, 4, 2, 16, 50, 0, True, 30, 20),
    (2, 4, 2, 16, 50, 0, False, 7, 0),
]


def case(batch, rows, heads, kv_heads, dim, lens, starts, dtype, *, causal=False):
    """Everything up to anc; NaN wherever the cache holds nothing yet."""
    generator = torch.Generator().manual_seed(0)
    qkv = strided(torch.randn(batch, rows, (heads + 2 * kv_heads) * dim, generator=generator).to(dtype))
    kc, vc = caches(batch, max(lens) + max(starts) + rows + 3, kv_heads, dim, dtype)
    poison_rows((kc, vc), [a + b for a, b in zip(lens, starts, strict=True)])
    anc = None
    if not causal:
        anc = torch.stack([words(1, s + rows, seed=s)[0, s:] for s in starts]) if batch else None
    return qkv, angles(batch, rows, dim), kc, vc, ints(*lens), ints(*starts), anc


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_equals_reference(shape, dtype, isa):
    t, h, k, d, length, start, causal, window, anchors = shape
    args = case(1, t, h, k, d, [length], [start], dtype, causal=causal)
    qkv, cos_sin, kc, vc, _, _, anc = args
    visible = op.visibility(length, start, None if causal else anc[0], t, window, anchors)
    eager_caches, exact = clean(kc, vc), [x.double() for x in clean(kc, vc)]
    eager = op.eager(qkv, cos_sin, *eager_caches, length, start, visible)
    want = op.reference(qkv.double(), cos_sin.double(), *exact, length, start, visible)
    with cpu_isa(isa):
        out = op.draft_attention(*args, window=window, n_anchor=anchors)
    assert_close64(out, eager, want, str(shape))
    for got, base, exact_rows in zip((kc, vc), eager_caches, exact, strict=True):
        rows = slice(0, length + start + t)
        assert_close64(got[:, rows], base[:, rows], exact_rows[:, rows], "cache")
        assert bool(got[:, length + start + t :].isnan().all())


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 40])
def test_equals_rope_append_and_tree_attention(dtype, window, isa):
    """Bit for bit: causal rows are a chain at the end of the text."""
    length, t = 1100, 9
    args = case(1, t, 6, 2, 32, [length], [0], dtype, causal=True)
    qkv, cos_sin, kc, vc, lens, _, _ = args
    q, key, value = (x.clone() for x in op.split_heads(qkv, kc))
    k2, v2 = kc.clone(), vc.clone()
    with cpu_isa(isa):
        out = op.draft_attention(*args, window=window)
        rope_append(q, key, value, cos_sin, length + torch.arange(t, dtype=torch.int32)[None], k2, v2)
        assert torch.equal(kc[:, : length + t], k2[:, : length + t]) and torch.equal(
            vc[:, : length + t], v2[:, : length + t]
        )
        if window:
            k2, v2, lens = k2[:, length - window :], v2[:, length - window :], ints(window)
        assert torch.equal(out, tree_attention(q, k2, v2, lens)[0])


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_rows_equal_single_runs(dtype, isa):
    lens, starts = [70, 0, 1030], [3, 60, 0]
    args = case(3, 5, 4, 2, 16, lens, starts, dtype, causal=True)
    alone = [x.clone() if x is not None else None for x in args]
    with cpu_isa(isa):
        out = op.draft_attention(*args)
        for b in range(3):
            one = [x if x is None else x[b : b + 1] for x in alone]
            assert torch.equal(op.draft_attention(*one)[0], out[b])
    for i in (2, 3):
        assert torch.equal(alone[i].nan_to_num(), args[i].nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
def test_unused_rows_write_nothing(dtype):
    args = case(3, 6, 4, 2, 16, [20, 0, 64], [2, 0, 1], dtype, causal=True)
    full = [x.clone() if x is not None else None for x in args]
    want = op.draft_attention(*full)
    out = poison(strided(torch.zeros(3, 6, 4, 16, dtype=dtype)))
    got = op.draft_attention(*args, num_rows=ints(4, 0, 6), out=out)
    assert got is out
    for b, (first, used) in enumerate([(22, 4), (0, 0), (65, 6)]):
        assert torch.equal(out[b, :used], want[b, :used]) and bool(out[b, used:].isnan().all())
        for i in (2, 3):
            assert torch.equal(args[i][b, : first + used], full[i][b, : first + used])
            assert bool(args[i][b, first + used :].isnan().all())
    assert bool((op.draft_attention(*args, num_rows=ints(4, 0, 6))[1] == 0).all())


def test_deeper_levels_equal_one_chain():
    """Three levels of one row each are a chain: the same as one causal call of three rows."""
    args = case(1, 3, 4, 2, 16, [33], [0], torch.float32, causal=True)
    qkv, cos_sin, kc, vc, lens, _, _ = args
    k2, v2 = kc.clone(), vc.clone()
    want = op.draft_attention(*args)
    for i in range(3):
        row = slice(i, i + 1)
        anc = torch.tensor([[[(2 << i) - 1]]])
        step = op.draft_attention(qkv[:, row], cos_sin[:, row].contiguous(), k2, v2, lens, ints(i), anc)
        assert torch.equal(step, want[:, row])


def test_workspace():
    args = case(1, 4, 4, 2, 16, [1500], [0], torch.bfloat16, causal=True)
    want = op.draft_attention(*args)
    size = op.draft_attention_workspace_size(1, 4, 4, 16, args[2].shape[1])
    buffer = torch.full((size + 64,), 171, dtype=torch.uint8)
    assert torch.equal(op.draft_attention(*args, workspace=buffer[:size]), want)
    assert bool((buffer[size:] == 171).all())
    with pytest.raises(RuntimeError, match="workspace must have at least"):
        op.draft_attention(*args, workspace=buffer[: size - 1])


def test_workspace_size_of_python_and_of_the_library_agree():
    for shape in [
        (1, 1, 28, 128, 0),
        (3, 10, 4, 17, 1023),
        (2, 128, 7, 72, 1024),
        (1, 3, 1, 2, 30000),
        (0, 3, 1, 2, 5),
    ]:
        assert op.draft_attention_workspace_size(*shape) == torch.ops.sparrow.draft_attention_workspace_size(*shape)


def test_strides_beyond_int32():
    step = 2**30 + 32
    buffer = torch.empty(2, 2 * step + 64, dtype=torch.bfloat16)
    far = [x.as_strided((1, 3, 1, 16), (0, step, 16, 1)) for x in buffer]
    near = [torch.randn(1, 3, 1, 16).bfloat16() for _ in far]
    for x, y in zip(far, near, strict=True):
        x.copy_(y)
    qkv, cos_sin, _, _, lens, start, _ = case(1, 1, 2, 1, 16, [2], [0], torch.bfloat16, causal=True)
    out = op.draft_attention(qkv, cos_sin, *far, lens, start)
    assert torch.equal(out, op.draft_attention(qkv, cos_sin, *near, lens, start))
    assert all(torch.equal(x, y) for x, y in zip(far, near, strict=True))


@pytest.mark.parametrize(("b", "t"), [(0, 4), (2, 0)])
def test_empty(b, t):
    cache = torch.zeros(b, 20, 2, 16)
    out = op.draft_attention(
        torch.zeros(b, t, 128), torch.zeros(b, t, 16), cache, cache.clone(), ints(*[3] * b), ints(*[0] * b)
    )
    assert out.shape == (b, t, 4, 16)


BAD = [
    ({"qkv": torch.zeros(1, 3, 128).double()}, "qkv must be float32 or bfloat16 or float16"),
    ({"qkv": torch.zeros(1, 3, 130)}, r"dimension 2 of qkv must be 128 \(\(H \+ 2 K\) D\)"),
    ({"qkv": torch.zeros(1, 3, 112)}, "must be a multiple of the kv heads"),
    ({"qkv": torch.zeros(1, 3, 256)[..., ::2]}, "qkv must be dense in its last dimension"),
    ({"cos_sin": torch.zeros(1, 3, 16).half()}, "cos_sin must be float32"),
    ({"cos_sin": torch.zeros(1, 2, 16)}, "dimension 1 of cos_sin must be 3"),
    ({"k_cache": torch.zeros(1, 20, 2, 16).half()}, "k_cache must have the dtype of qkv"),
    ({"v_cache": torch.zeros(1, 21, 2, 16)}, "dimension 1 of v_cache must be 20"),
    ({"seq_lens": torch.tensor([3])}, "seq_lens must be int32, got int64"),
    ({"seq_lens": ints(16)}, r"must be >= 0 and <= Smax = 20, got 16 \+ 2 \+ 3"),
    ({"seq_lens": ints(-1)}, "must be >= 0"),
    ({"tree_start": ints(-1)}, "must be >= 0"),
    ({"tree_start": ints(1, 2)}, "dimension 0 of tree_start must be 1"),
    ({"anc": torch.zeros(1, 3, 0, dtype=torch.int64)}, "anc must have a word per 64 tree slots"),
    ({"anc": torch.zeros(1, 3, 1, dtype=torch.int32)}, "anc must be int64"),
    ({"anc": torch.zeros(1, 2, 1, dtype=torch.int64)}, "dimension 1 of anc must be 3"),
    ({"num_rows": ints(4)}, r"num_rows\[0\] must lie in \[0, T = 3\], got 4"),
    ({"window": -1}, r"window must lie in \[0, 2147483647\], got -1"),
    ({"out": torch.zeros(1, 3, 4, 16).half()}, "out must have the dtype of qkv"),
    ({"out": torch.zeros(1, 2, 4, 16)}, "dimension 1 of out must be 3"),
    ({"workspace": torch.zeros(10**5)}, "workspace must be uint8"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_raise(change, message):
    good = {
        "qkv": torch.ones(1, 3, 128),
        "cos_sin": torch.ones(1, 3, 16),
        "k_cache": torch.zeros(1, 20, 2, 16),
        "v_cache": torch.zeros(1, 20, 2, 16),
        "seq_lens": ints(5),
        "tree_start": ints(2),
    }
    args = good | change
    with pytest.raises(RuntimeError, match=f"draft_attention: .*{message}"):
        op.draft_attention(**args)
    assert not bool(args["k_cache"].any()) and not bool(args["v_cache"].any())
    op.draft_attention(**good)


def test_too_many_slots():
    cache = torch.zeros(1, 300, 2, 16)
    args = torch.zeros(1, 9, 128), torch.zeros(1, 9, 16), cache, cache.clone(), ints(5)
    with pytest.raises(RuntimeError, match=r"tree_start\[0\] \+ T must be <= 128, got 120 \+ 9"):
        op.draft_attention(*args, ints(120))


def test_opcheck_and_compile():
    qkv, cos_sin, kc, vc, lens, starts, anc = case(2, 3, 4, 2, 16, [20, 3], [2, 1], torch.float32)
    for x in (kc, vc):
        x.nan_to_num_(0.0)
    out = torch.zeros(2, 3, 4, 16)
    workspace = torch.empty(op.draft_attention_workspace_size(2, 3, 4, 16, kc.shape[1]), dtype=torch.uint8)
    args = (qkv, cos_sin, kc.clone(), vc.clone(), lens, starts, anc, 0.25, 0, 0, None)
    torch.library.opcheck(torch.ops.sparrow.draft_attention, (*args, out, workspace))
    k2, v2 = kc.clone(), vc.clone()
    got = compiled(op.draft_attention, qkv, cos_sin, k2, v2, lens, starts, anc)
    assert torch.equal(got, op.draft_attention(qkv, cos_sin, kc, vc, lens, starts, anc))
    assert torch.equal(k2, kc) and torch.equal(v2, vc)
