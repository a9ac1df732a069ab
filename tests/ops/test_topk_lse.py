import pytest
import torch

from sparrow_ext.ops import topk_lse as op
from tests.ops.checks import (
    DTYPES,
    assert_close64,
    available_isas,
    compiled,
    cpu_isa,
    strided,
)

INF = float("inf")


def logits(rows, vocab, dtype=torch.float32, scale=4.0):
    return (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab + rows)) * scale).to(dtype)


def check(x, k, what="", id_map=None):
    got, want, eager = op.topk_lse(x, k, id_map), op.reference(x.double(), k, id_map), op.eager(x, k, id_map)
    assert torch.equal(got[1], want[1]), f"{what}: ids"
    assert got[0].dtype == got[2].dtype == torch.float32 and got[1].dtype == torch.int64
    assert_close64(got[0], eager[0], want[0], f"{what}: logp")
    assert_close64(got[2], eager[2], want[2], f"{what}: lse")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 31, 32, 63, 64, 65, 511, 513, 8191, 8192, 8193, 40000])
def test_equals_reference(vocab, dtype, isa):
    x = logits(3, vocab, dtype)  # 16-bit logits are full of ties: ids must be the lowest
    with cpu_isa(isa):
        for k in {1, min(32, vocab)} if vocab < 1000 else {10}:
            check(x, k, f"V={vocab} k={k} {isa}")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("order", ["ascending", "descending", "constant"])
def test_sorted_and_constant_rows(order, isa):
    x = torch.arange(20000, dtype=torch.float32)[None] * 1e-3
    x = {"ascending": x, "descending": x.flip(-1), "constant": torch.zeros_like(x)}[order]
    with cpu_isa(isa):
        check(x, 32, f"{order} {isa}")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("scale", [0.0, 1e-30, 100.0, 1e30])
def test_scales(scale, isa):
    with cpu_isa(isa):
        check(logits(2, 9000, scale=scale), 10, f"{scale} {isa}")


def test_leading_dimensions_and_strides():
    x = logits(6, 700)
    flat = op.topk_lse(x, 5)
    batched = op.topk_lse(x.view(2, 3, 700), 5)
    for got, want in zip(batched, flat, strict=True):
        assert torch.equal(got.flatten(0, 1), want)
    for view in (x, x.view(2, 3, 700)):
        for got, want in zip(op.topk_lse(strided(view), 5), op.topk_lse(view, 5), strict=True):
            assert torch.equal(got, want)
    swapped = op.topk_lse(x.view(2, 3, 700).transpose(0, 1), 5)
    assert torch.equal(swapped[1], batched[1].transpose(0, 1))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_alone_and_in_a_batch(dtype, isa):
    x = logits(7, 20000, dtype)
    with cpu_isa(isa):
        full = op.topk_lse(x, 9)
        for row in range(7):
            for got, want in zip(op.topk_lse(x[row : row + 1], 9), full, strict=True):
                assert torch.equal(got[0], want[row])


def test_same_bits_whatever_the_thread_count():
    x, before = logits(5, 60000), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = op.topk_lse(x, 10)
        torch.set_num_threads(3)
        for got, want in zip(op.topk_lse(x, 10), one, strict=True):
            assert torch.equal(got, want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [40, 9000])
def test_nan_counts_as_minus_infinity(vocab, dtype, isa):
    x = logits(4, vocab, dtype)
    masked = x.clone()
    masked[0, ::3], masked[1, 5:], masked[2, : vocab - 5], masked[3, 7] = -INF, -INF, -INF, -INF
    nans = torch.where(masked == -INF, torch.tensor(float("nan"), dtype=dtype), masked)
    with cpu_isa(isa):
        want = op.topk_lse(masked, 20)
        for got, clean in zip(op.topk_lse(nans, 20), want, strict=True):
            assert torch.equal(got, clean)
        reference = op.reference(nans.double(), 20)
        assert torch.equal(want[1], reference[1])
        assert torch.equal(want[0] == -INF, reference[0] == -INF) and not want[0].isnan().any()
        torch.testing.assert_close(want[2].double(), reference[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("fill", [-INF, float("nan")])
def test_rows_of_minus_infinity(fill, isa):
    with cpu_isa(isa):
        logp, ids, lse = op.topk_lse(torch.full((2, 9000), fill), 6)
    assert bool((logp == -INF).all()) and bool((lse == -INF).all())
    assert torch.equal(ids, torch.arange(6).expand(2, 6))


@pytest.mark.parametrize("isa", available_isas())
def test_plus_infinity(isa):
    x = logits(1, 9000)
    x[0, 8500] = x[0, 17] = INF
    x[0, 3] = float("nan")
    with cpu_isa(isa):
        logp, ids, lse = op.topk_lse(x, 4)
    assert lse.item() == INF and ids[0, :2].tolist() == [17, 8500]
    assert logp[0].tolist() == [0.0, 0.0, -INF, -INF]
    assert torch.equal(ids, op.reference(x.double(), 4)[1])


def test_large_negative_values_do_not_overflow():
    x = torch.tensor([[-3e38, 3e38, 0.0, -3e38], [-3e38, -3e38, -3e38, -3e38]])
    logp, ids, lse = op.topk_lse(x, 3)
    assert torch.equal(ids, torch.tensor([[1, 2, 0], [0, 1, 2]])) and bool(lse.isfinite().all())
    assert logp[0, 0] == 0 and not logp.isnan().any()


def test_id_map():
    x, id_map = logits(3, 100), torch.randperm(1000)[:100]
    check(x, 7, "id_map", id_map)
    assert torch.equal(op.topk_lse(x, 7, id_map)[1], id_map[op.topk_lse(x, 7)[1]])


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 31, 65, 511, 513, 8193])
def test_bias(vocab, dtype, isa):
    """Added in float32, one for each sequence; of a wider buffer's rows, too; -inf takes a token out."""
    x, wide = logits(6, vocab, dtype), logits(3, vocab + 5)
    wide[1, vocab // 2 :] = -INF
    k, bias = min(5, vocab), wide[:, :vocab]
    whole = x.float().view(3, 2, vocab) + bias[:, None]
    with cpu_isa(isa):
        got, want = op.topk_lse(x.view(3, 2, vocab), k, None, bias), op.topk_lse(whole, k)
        flat = op.topk_lse(x, k, None, bias[:1])
        for one, other in zip((*got, *flat), (*want, *op.topk_lse(x.float() + bias[:1], k)), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(got[1], op.reference(x.view(3, 2, vocab).float(), k, None, bias)[1])


@pytest.mark.parametrize("shape", [(0, 50), (0, 3, 50), (3, 0, 50)])
def test_empty(shape):
    logp, ids, lse = op.topk_lse(torch.empty(shape), 4)
    assert logp.shape == ids.shape == (*shape[:-1], 4) and lse.shape == shape[:-1]


def test_far_offsets():
    """A row beyond 2^31 elements: the untouched part of the allocation is never committed."""
    buffer = torch.empty(2**31 + 4096, dtype=torch.bfloat16)
    view = buffer.as_strided((2, 300), (2**31 + 100, 1))
    view.copy_(logits(2, 300, torch.bfloat16))
    for got, want in zip(op.topk_lse(view, 8), op.topk_lse(view.clone(), 8), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(2, 50, dtype=torch.float64), 3), "logits must be float32 or bfloat16 or float16, got float64"),
        ((torch.zeros(50), 3), "logits must have 2 or 3 dimensions"),
        ((torch.zeros(50, 2).T, 3), "logits must be dense in its last dimension"),
        ((torch.zeros(2, 50), 0), "k must lie in"),
        ((torch.zeros(2, 50), 33), "k must lie in"),
        ((torch.zeros(2, 20), 21), "k must lie in"),
        ((torch.zeros(2, 50), 3, torch.zeros(49, dtype=torch.int64)), "dimension 0 of id_map must be 50"),
        ((torch.zeros(2, 50), 3, torch.zeros(50, dtype=torch.int32)), "id_map must be int64"),
        ((torch.zeros(2, 50), 3, None, torch.zeros(50)), "bias must have 2 dimensions"),
        ((torch.zeros(2, 50), 3, None, torch.zeros(2, 50)), "dimension 0 of bias must be 1"),
        ((torch.zeros(2, 1, 50), 3, None, torch.zeros(1, 50)), r"dimension 0 of bias must be 2 \(B\)"),
        ((torch.zeros(2, 50), 3, None, torch.zeros(1, 49)), r"dimension 1 of bias must be 50 \(V\)"),
        ((torch.zeros(2, 50), 3, None, torch.zeros(1, 50).half()), "bias must be float32, got float16"),
        ((torch.zeros(2, 50), 3, None, torch.zeros(1, 100)[:, ::2]), "bias must be dense in its last dimension"),
    ],
)
def test_bad_arguments_raise(args, message):
    with pytest.raises(RuntimeError, match=message):
        op.topk_lse(*args)


def test_opcheck_and_compile():
    x = logits(6, 100).view(2, 3, 100)
    torch.library.opcheck(torch.ops.sparrow.topk_lse, (x, 4, torch.arange(100), torch.zeros(2, 100)))
    for got, want in zip(compiled(op.topk_lse, x, 4), op.topk_lse(x, 4), strict=True):
        assert torch.equal(got, want)
