import pytest
import torch

from sparrow_ext.ops import draft_attention as op
from sparrow_ext.ops.tree_mask import unpack_words
from tests.ops.attention_cases import clean, ints
from tests.ops.checks import DTYPES, assert_close64, poison, strided
from tests.ops.test_draft_attention import case

# T, H, K, D, text rows, tree_start, causal, window, anchors
CASES = [
    (1, 7, 1, 128, 300, 0, True, 0, 0),
    (10, 7, 1, 128, 140, 10, False, 0, 0),
    (10, 4, 2, 64, 0, 0, False, 0, 0),
    (64, 2, 1, 32, 64, 64, False, 0, 0),
    (128, 2, 1, 16, 33, 0, True, 0, 0),
    (3, 8, 2, 80, 65, 60, True, 0, 0),
    (5, 3, 1, 48, 200, 3, False, 64, 4),
    (5, 4, 2, 16, 700, 3, True, 300, 70),
    (5, 2, 1, 24, 150, 3, True, 40, 7),  # head_dim of the plain path
    (2, 4, 2, 16, 50, 0, False, 7, 0),
    (31, 7, 1, 128, 75, 5, False, 0, 0),  # 217 rows
    (43, 3, 1, 80, 90, 2, True, 60, 4),  # 129
    (128, 3, 1, 16, 20, 0, False, 0, 0),  # 384, two tiles of rows: the first writes the cache
]


def run(sim, qkv, cos_sin, kc, vc, lens, starts, anc=None, window=0, n_anchor=0, num_rows=None, out=None, error=None):
    b, t, _ = qkv.shape
    kv_heads, d = kc.shape[2:]
    heads = qkv.shape[2] // d - 2 * kv_heads
    out = torch.zeros(b, t, heads, d, dtype=qkv.dtype) if out is None else out
    seen = min(kc.shape[1], window + n_anchor) if window > 0 else kc.shape[1]
    size = op.draft_attention_workspace_size(b, t, heads, d, seen)
    workspace = torch.full((size + 64,), 171, dtype=torch.uint8)
    options = anc, d**-0.5, window, n_anchor, num_rows, out, workspace[:size], error
    sim.ops.draft_attention(qkv, cos_sin, kc, vc, lens, starts, *options)
    assert bool((workspace[size:] == 171).all())
    return out


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_equals_reference(sim, shape, request):
    t, h, k, d, length, start, causal, window, anchors = shape
    for dtype in [DTYPES[0], DTYPES[1 + request.node.callspec.params["sim"] % 2]]:
        args = case(1, t, h, k, d, [length], [start], dtype, causal=causal)
        qkv, cos_sin, kc, vc, _, _, anc = args
        visible = op.visibility(length, start, None if causal else anc[0], t, window, anchors)
        eager_caches, exact = clean(kc, vc), [x.double() for x in clean(kc, vc)]
        eager = op.eager(qkv, cos_sin, *eager_caches, length, start, visible)
        want = op.reference(qkv.double(), cos_sin.double(), *exact, length, start, visible)
        out = run(sim, *args, window=window, n_anchor=anchors)
        assert_close64(out, eager, want, str(shape))
        for got, base, exact_rows in zip((kc, vc), eager_caches, exact, strict=True):
            rows = slice(0, length + start + t)
            assert_close64(got[:, rows], base[:, rows], exact_rows[:, rows], "cache")
            assert bool(got[:, length + start + t :].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 40])
def test_equals_rope_append_and_tree_attention(sim, dtype, window):
    """Bit for bit: causal rows are a chain at the end of the text."""
    length, t = 300, 9
    args = case(1, t, 6, 2, 32, [length], [0], dtype, causal=True)
    qkv, cos_sin, kc, vc, lens, _, _ = args
    q, key, value = (x.clone() for x in op.split_heads(qkv, kc))
    k2, v2 = kc.clone(), vc.clone()
    out = run(sim, *args, window=window)
    sim.ops.rope_append(q, key, value, cos_sin, length + torch.arange(t, dtype=torch.int32)[None], k2, v2)
    rows = slice(0, length + t)
    assert torch.equal(kc[:, rows], k2[:, rows]) and torch.equal(vc[:, rows], v2[:, rows])
    if window:
        k2, v2, lens = k2[:, length - window :], v2[:, length - window :], ints(window)
    want = sim.ops.tree_attention(q, k2, v2, lens, None, None, 32**-0.5, k2.shape[1], 0)[0]
    assert torch.equal(out, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_visible_set_is_exact(simulator, dtype):
    """K = 0 and values one-hot, in the cache and in the new rows: support and 1 / count are exact."""
    simulator.configure(seed=2)
    d, t, length, start, window, anchors = 64, 34, 230, 40, 150, 3
    args = case(1, t, 1, 1, d, [length], [start], dtype)
    qkv, _, kc, vc, _, _, anc = args
    rows = length + start + t
    visible = op.visibility(length, start, anc[0], t, window, anchors)
    for first in range(0, rows, d):
        hot = torch.eye(rows, dtype=dtype)[:, first : first + d]
        qkv.zero_(), kc.zero_(), vc.zero_()
        vc[0, : length + start, 0, : hot.shape[1]] = hot[: length + start]
        qkv[0, :, 2 * d : 2 * d + hot.shape[1]] = hot[length + start :]
        out = run(simulator, *args, window=window, n_anchor=anchors)
        want = visible[:, first : first + d].double() / visible.sum(-1, keepdim=True)
        assert torch.equal(out[0, :, 0, : want.shape[-1]], want.to(dtype))
    assert unpack_words(anc, start + t).shape == (1, t, start + t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("t", "used"), [(6, [4, 0, 6]), (67, [66, 0, 20])])  # 12 and 134 rows
def test_ragged_rows_equal_single_runs_and_unused_rows_write_nothing(sim, t, used, dtype):
    lens, starts = [20, 0, 200], [2, 60, 1]
    args = case(3, t, 4, 2, 16, lens, starts, dtype, causal=True)
    full = [x.clone() if x is not None else None for x in args]
    want = run(sim, *full)
    out = run(sim, *args, num_rows=ints(*used), out=poison(strided(torch.zeros(3, t, 4, 16, dtype=dtype))))
    for b in range(3):
        first = lens[b] + starts[b]
        assert torch.equal(out[b, : used[b]], want[b, : used[b]]) and bool(out[b, used[b] :].isnan().all())
        for i in (2, 3):
            assert torch.equal(args[i][b, : first + used[b]], full[i][b, : first + used[b]])
            assert bool(args[i][b, first + used[b] :].isnan().all())
        one = case(3, t, 4, 2, 16, lens, starts, dtype, causal=True)
        one = [x if x is None else x[b : b + 1] for x in one]
        assert torch.equal(run(sim, *one)[0], want[b])


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_out_of_range_stay_inside_the_cache(sim, dtype):
    qkv, cos_sin, kc, vc, _, _, _ = case(4, 5, 2, 1, 16, [40] * 4, [3] * 4, dtype, causal=True)
    guard = [x.clone() for x in (kc, vc)]
    run(sim, qkv, cos_sin, kc, vc, ints(-3, 2**31 - 1, 41, 60), ints(2**31 - 1, -1, 5, 126), num_rows=ints(9, -1, 5, 5))
    assert all(torch.equal(x[1].nan_to_num(), y[1].nan_to_num()) for x, y in zip((kc, vc), guard, strict=True))
    assert run(sim, qkv[:0], cos_sin[:0], kc[:0], vc[:0], ints(), ints()).shape == (0, 5, 2, 16)


def test_warps_of_32_rows_give_the_bits_of_16(simulator):
    results = []
    for kib in (99, 163, 227):
        simulator.configure(seed=1, shared_kib=kib)
        args = case(2, 31, 7, 1, 128, [70, 3], [40, 45], torch.bfloat16)
        results.append((run(simulator, *args, num_rows=ints(31, 29)), *args[2:4]))
    for got in results[1:]:
        torch.testing.assert_close(got, results[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clamped_length_sets_the_error_word(sim, dtype):
    qkv, cos_sin, kc, vc, _, _, _ = case(1, 5, 2, 1, 16, [40], [3], dtype, causal=True)
    rows, word = kc.shape[1], torch.zeros(1, dtype=torch.int32)
    for length, start, used, want in [(40, 3, 5, 0), (rows - 8, 3, 5, 0), (rows - 7, 3, 5, 2), (-1, 3, 5, 2),
                                      (0, -1, 5, 2), (0, 124, 5, 2), (0, 0, 6, 2), (0, 0, -1, 2)]:  # fmt: skip
        run(sim, qkv, cos_sin, kc, vc, ints(length), ints(start), num_rows=ints(used), error=word.zero_())
        assert word.item() == want, (length, start, used)
