import pytest
import torch

from sparrow_ext.ops import add_rms_norm as op
from tests.ops.checks import DTYPES, assert_close64, available_isas, compiled, cpu_isa, strided

EPS = 1e-6


def inputs(shape, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(*shape, generator=g).to(dtype) for _ in range(2))
    return x, torch.rand(shape[-1], generator=g).to(dtype) + 0.5, residual


def check(x, weight, residual, isa="generic", eps=EPS):
    given = (x, weight, eps, residual)
    wide = tuple(t.double() if isinstance(t, torch.Tensor) else t for t in given)
    with cpu_isa(isa):
        (normed, total), (eager, eager_total) = op.add_rms_norm(*given), op.eager(*given)
    assert normed.dtype == total.dtype == x.dtype and normed.is_contiguous()
    assert torch.equal(total, eager_total), "the sum is rounded once"
    assert_close64(normed, eager, op.reference(*wide)[0])


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 192, 576, 3584])
def test_equals_the_definition(width, dtype, isa):
    x, weight, residual = inputs((2, 3, width), dtype, width)
    check(x, weight, residual, isa)
    check(x, weight, None, isa)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (2, 0, 5), (3, 0), (2, 1, 3, 1, 5)])
def test_shapes(shape):
    check(*inputs(shape, torch.float32))


def test_without_a_residual_total_is_x():
    x, weight, _ = inputs((2, 64), torch.bfloat16)
    assert op.add_rms_norm(x, weight)[1] is x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", available_isas())
def test_a_row_has_the_same_bits_alone(isa, dtype):
    x, weight, residual = inputs((70, 203), dtype)
    with cpu_isa(isa):
        together = op.add_rms_norm(x, weight, EPS, residual)
        for m in (0, 33, 69):
            alone = op.add_rms_norm(x[m : m + 1], weight, EPS, residual[m : m + 1])
            assert all(torch.equal(a[0], b[m]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(dtype):
    x, weight, residual = inputs((3, 5, 130), dtype)
    expected = op.add_rms_norm(x, weight, EPS, residual)
    for given in (strided(x), x.transpose(0, 1).contiguous().transpose(0, 1), x.unflatten(-1, (-1, 1)).flatten(-2)):
        got = op.add_rms_norm(given, weight, EPS, strided(residual))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    wide = torch.randn(4, 300)  # every second part of a row, as heads lie in one projection
    assert torch.equal(op.add_rms_norm(wide[:, 100:200], torch.ones(100))[0],
                       op.add_rms_norm(wide[:, 100:200].contiguous(), torch.ones(100))[0])  # fmt: skip
    columns = torch.randn(100, 4).T
    assert torch.equal(op.add_rms_norm(columns, torch.ones(100))[0],
                       op.add_rms_norm(columns.contiguous(), torch.ones(100))[0])  # fmt: skip


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_rows(dtype, isa):
    x = torch.zeros(5, 40, dtype=dtype)
    x[1] = torch.finfo(dtype).tiny
    x[2, 3], x[3, 39], x[4] = torch.nan, torch.inf, 100.0
    with cpu_isa(isa):
        normed, _ = op.add_rms_norm(x, torch.ones(40, dtype=dtype), EPS)
    assert torch.equal(normed[0], x[0]), "nothing stays nothing"
    assert torch.allclose(normed[1].float(), x[1].float() * 1000, rtol=0.02), "eps holds it"
    assert bool(normed[2].isnan().all()), "one NaN is in the mean of all"
    assert bool(normed[3, 39].isnan()) and bool((normed[3, :39] == 0).all())
    assert torch.allclose(normed[4].float(), torch.ones(40), atol=0.01)


def test_more_threads_give_the_same_bits():
    x, weight, residual = inputs((96, 3584), torch.bfloat16)
    one, before = op.add_rms_norm(x, weight, EPS, residual), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        many = op.add_rms_norm(x, weight, EPS, residual)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


X, W = torch.zeros(2, 8), torch.ones(8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X.double(), W), "x must be float32 or bfloat16 or float16, got float64"),
        ((X[0, 0], W), "x must have 1 to 8 dimensions"),
        ((X, W[:7]), r"dimension 0 of weight must be 8 \(E, the last dimension of x\), got shape \[7\]"),
        ((X, W[None]), "weight must have 1 dimensions"),
        ((X, W.bfloat16()), r"weight must have the dtype of x \(float32\), got bfloat16"),
        ((X, torch.ones(16)[::2]), "weight must be contiguous"),
        ((X, W, -1.0), "eps must be at least 0 and finite, got -1"),
        ((X, W, float("nan")), "eps must be at least 0 and finite, got nan"),
        ((X, W, 1e-6, X[:1]), r"dimension 0 of residual must be 2 \(that of x\), got shape \[1, 8\]"),
        ((X, W, 1e-6, X[0]), "residual must have 2 dimensions"),
        ((X, W, 1e-6, X.half()), r"residual must have the dtype of x \(float32\), got float16"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(RuntimeError, match=f"add_rms_norm: {message}"):
        op.add_rms_norm(*arguments)


def test_compiled():
    x, weight, residual = inputs((2, 3, 64), torch.float32)
    expected = op.add_rms_norm(x, weight, EPS, residual)
    got = compiled(lambda *t: op.add_rms_norm(t[0], t[1], EPS, t[2]), x, weight, residual)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(compiled(lambda *t: op.add_rms_norm(*t)[0], x, weight), op.add_rms_norm(x, weight)[0])
