import pytest
import torch

from sparrow_ext.ops import lm_head_topk as op
from sparrow_ext.ops import topk_lse as topk
from tests.ops.checks import (
    DTYPES,
    assert_close64,
    available_isas,
    compiled,
    cpu_isa,
    strided,
)

INF = float("inf")


def inputs(m, dtype=torch.float32, width=70, vocab=2500):
    g = torch.Generator().manual_seed(m + width + vocab)
    return torch.randn(m, width, generator=g).to(dtype), torch.randn(vocab, width, generator=g).to(dtype)


def assert_order(got, h, weight, tolerance):
    """The ids' exact logits are, within tolerance, the sorted k largest; no id occurs twice."""
    exact = h.double() @ weight.double().T
    chosen = exact.gather(-1, got[1])
    best = exact.topk(chosen.shape[-1], dim=-1).values
    assert float((chosen - best).abs().max()) <= tolerance * float(exact.abs().max())
    assert all(len(set(row)) == len(row) for row in got[1].tolist())


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 3, 4, 5, 17, 64, 65, 130])
def test_close_to_reference(m, dtype, isa):
    h, weight = inputs(m, dtype)
    with cpu_isa(isa):
        got = op.lm_head_topk(h, weight, 8)
    eager, want = op.eager(h, weight, 8), op.reference(h.double(), weight.double(), 8)
    assert got[0].dtype == got[2].dtype == torch.float32 and got[1].dtype == torch.int64
    assert_close64(got[0], eager[0], want[0], f"M={m} {isa}: logp")
    assert_close64(got[2], eager[2], want[2], f"M={m} {isa}: lse")
    assert_order(got, h, weight, 1e-6 if m <= 64 else 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("vocab", [1, 7, 31, 33, 64, 1023, 1024, 1025])
@pytest.mark.parametrize("width", [1, 33, 600])
def test_sizes_and_tails(width, vocab, isa):
    h, weight = inputs(5, torch.bfloat16, width, vocab)
    k = min(vocab, 32)
    with cpu_isa(isa):
        got = op.lm_head_topk(h, weight, k)
    want, eager = op.reference(h.double(), weight.double(), k), op.eager(h, weight, k)
    assert_close64(got[0], eager[0], want[0])
    assert_close64(got[2], eager[2], want[2])
    assert_order(got, h, weight, 1e-6)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_ties_take_the_lowest_row(dtype, isa):
    h, weight = inputs(5, dtype, 64, 40)
    weight = weight[torch.arange(3000) % 40].contiguous()  # every row 75 times
    with cpu_isa(isa):
        ids = op.lm_head_topk(h, weight, 20)[1]
    best = (h.double() @ weight[:40].double().T).argmax(-1)
    assert torch.equal(ids, best[:, None] + 40 * torch.arange(20))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_whatever_m(dtype, isa):
    h, weight = inputs(64, dtype, 200, 3000)
    with cpu_isa(isa):
        full = op.lm_head_topk(h, weight, 10)
        for m in (1, 2, 3, 4, 8, 16, 33, 63):
            for got, want in zip(op.lm_head_topk(h[:m], weight, 10), full, strict=True):
                assert torch.equal(got, want[:m]), m
        for got, want in zip(op.lm_head_topk(h[41:42], weight, 10), full, strict=True):
            assert torch.equal(got, want[41:42])


def test_same_bits_whatever_the_thread_count():
    (h, weight), before = inputs(6, torch.bfloat16, 256, 20000), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = op.lm_head_topk(h, weight, 10)
        torch.set_num_threads(3)
        for got, want in zip(op.lm_head_topk(h, weight, 10), one, strict=True):
            assert torch.equal(got, want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [6, 90])
def test_leading_dimensions_strides_and_id_map(m, dtype):
    h, weight = inputs(m, dtype)
    id_map = torch.randperm(9000)[:2500]
    flat = op.lm_head_topk(h, weight, 5, id_map)
    for view in (h.view(2, m // 2, 70), strided(h.view(2, m // 2, 70))):
        for got, want in zip(op.lm_head_topk(view, strided(weight), 5, id_map), flat, strict=True):
            assert torch.equal(got.flatten(0, 1), want)
    assert torch.equal(flat[1], id_map[op.lm_head_topk(h, weight, 5)[1]])


def test_nan_and_infinite_logits_follow_topk_lse():
    h, weight = inputs(3, width=8, vocab=1500)
    weight[10, 0], weight[1200, 0], weight[4, 0] = float("nan"), float("nan"), INF
    h[:, 0] = torch.tensor([1.0, -1.0, 1.0])
    h[2, 1] = float("nan")
    got, want = op.lm_head_topk(h, weight, 6), topk.reference((h @ weight.T).double(), 6)
    assert torch.equal(got[1], want[1])
    assert got[2][0] == INF and got[0][0, 0] == 0 and bool((got[0][0, 1:] == -INF).all())
    assert got[2][1].isfinite() and not {4, 10, 1200} & set(got[1][1].tolist())
    assert got[2][2] == -INF and bool((got[0][2] == -INF).all()) and got[1][2].tolist() == list(range(6))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 2, 9, 33, 65])
def test_bias(m, dtype, isa):
    """One for each sequence, beyond 64 rows and across its calls, too; -inf takes a token out."""
    h, weight = inputs(3 * m, dtype, vocab=1100)
    h, wide = h.view(3, m, 70), torch.randn(3, 1105, generator=torch.Generator().manual_seed(0)) * 4
    wide[1, 550:] = -INF
    bias = wide[:, :1100]
    with cpu_isa(isa):
        got, flat = op.lm_head_topk(h, weight, 5, None, bias), op.lm_head_topk(h[2], weight, 5, None, bias[2:])
    want = op.reference(h.double(), weight.double(), 5, None, bias.double())
    eager = op.eager(h, weight, 5, None, bias)
    for i in (0, 2):
        assert_close64(got[i], eager[i], want[i])
        if m <= 64:
            assert_close64(flat[i], eager[i][2], want[i][2])
    assert int(got[1][1].max()) < 550
    exact = h.double() @ weight.double().T + bias.double()[:, None]
    apart = (exact.gather(-1, got[1]) - exact.topk(5).values).abs().max()
    assert float(apart) <= (1e-6 if 3 * m <= 64 else 2 * torch.finfo(dtype).eps) * float(exact[[0, 2]].abs().max())


@pytest.mark.parametrize("shape", [(0, 70), (0, 3, 70), (3, 0, 70)])
def test_empty(shape):
    logp, ids, lse = op.lm_head_topk(torch.empty(shape), torch.zeros(50, 70), 4)
    assert logp.shape == ids.shape == (*shape[:-1], 4) and lse.shape == shape[:-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(2, 50, dtype=torch.float64), torch.zeros(90, 50), 3), "h must be float32 or bfloat16 or float16"),
        ((torch.zeros(2, 50), torch.zeros(90, 50).half(), 3), "weight must have the dtype of h"),
        ((torch.zeros(50), torch.zeros(90, 50), 3), "h must have 2 or 3 dimensions"),
        ((torch.zeros(2, 50), torch.zeros(90, 51), 3), "dimension 1 of weight must be 50"),
        ((torch.zeros(2, 50), torch.zeros(50, 90).T, 3), "weight must be dense in its last dimension"),
        ((torch.zeros(50, 2).T, torch.zeros(90, 50), 3), "h must be dense in its last dimension"),
        ((torch.zeros(2, 50), torch.zeros(90, 50), 0), "k must lie in"),
        ((torch.zeros(2, 50), torch.zeros(90, 50), 33), "k must lie in"),
        ((torch.zeros(2, 50), torch.zeros(20, 50), 21), "k must lie in"),
        ((torch.zeros(2, 50), torch.zeros(90, 50), 3, torch.zeros(50, dtype=torch.int64)), "of id_map must be 90"),
        ((torch.zeros(2, 50), torch.zeros(90, 50), 3, None, torch.zeros(2, 90)), "dimension 0 of bias must be 1"),
        ((torch.zeros(2, 1, 50), torch.zeros(90, 50), 3, None, torch.zeros(2, 50)), "dimension 1 of bias must be 90"),
    ],
)
def test_bad_arguments_raise(args, message):
    with pytest.raises(RuntimeError, match=message):
        op.lm_head_topk(*args)


def test_opcheck_and_compile():
    h, weight = inputs(6)
    h = h.view(2, 3, 70)
    torch.library.opcheck(torch.ops.sparrow.lm_head_topk, (h, weight, 4, torch.arange(2500), torch.zeros(2, 2500)))
    for got, want in zip(compiled(op.lm_head_topk, h, weight, 4), op.lm_head_topk(h, weight, 4), strict=True):
        assert torch.equal(got, want)
