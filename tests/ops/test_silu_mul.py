import pytest
import torch

from sparrow_ext.ops import silu_mul as op
from tests.ops.checks import DTYPES, assert_close64, available_isas, compiled, cpu_isa, strided


def inputs(shape, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(*shape, generator=g) * 4).to(dtype) for _ in range(2))


def check(gate, up, isa="generic"):
    with cpu_isa(isa):
        got = op.silu_mul(gate, up)
    assert got.dtype == gate.dtype and got.is_contiguous()
    assert_close64(got, op.eager(gate, up), op.reference(gate.double(), up.double()))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 7, 8, 15, 16, 31, 33, 63, 64, 65, 512, 4095, 4096, 4097, 18944])
def test_equals_the_definition(width, dtype, isa):
    check(*inputs((2, 3, width), dtype, width), isa)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (2, 0, 5), (3, 0), (2, 1, 3, 1, 5)])
def test_shapes(shape):
    check(*inputs(shape, torch.float32))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_has_the_same_bits_anywhere(dtype, isa):
    gate, up = (t.expand(1, 203).contiguous() for t in (torch.tensor(1.7, dtype=dtype), torch.tensor(0.3, dtype=dtype)))
    with cpu_isa(isa):
        assert len(op.silu_mul(gate, up).unique()) == 1
        assert op.silu_mul(gate[:, :1], up[:, :1]).unique() == op.silu_mul(gate, up).unique()


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(dtype):
    gate, up = inputs((3, 5, 130), dtype)
    expected = op.silu_mul(gate, up)
    assert torch.equal(op.silu_mul(strided(gate), strided(up)), expected)
    assert torch.equal(op.silu_mul(*torch.cat([gate, up], -1).chunk(2, -1)), expected)
    assert torch.equal(op.silu_mul(gate.transpose(0, 2), up.transpose(0, 2)), expected.transpose(0, 2))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype, isa):
    inf, nan = torch.inf, torch.nan
    gate = torch.tensor([0.0, -0.0, inf, -1000.0, 1000.0, nan, 1.0, -80.0, -88.5] * 5, dtype=dtype)
    up = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, nan, 1.0, 1.0] * 5, dtype=dtype)
    with cpu_isa(isa):
        got = op.silu_mul(gate, up).float()
    assert got[:3].tolist() == [0.0, 0.0, inf] and got[4] == 1000.0
    assert abs(got[3]) == 0 and bool(got[5:7].isnan().all())
    assert bool((got[7:9] <= 0).all()) and bool((got[7:9] > -1e-30).all())
    assert torch.equal(got[:9].expand(5, 9).nan_to_num(7), got.view(5, 9).nan_to_num(7))


def test_more_threads_give_the_same_bits():
    gate, up = inputs((40, 9000), torch.float32)
    one, before = op.silu_mul(gate, up), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(op.silu_mul(gate, up), one)
    finally:
        torch.set_num_threads(before)


X = torch.zeros(2, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X.double(), X.double()), "gate must be float32 or bfloat16 or float16, got float64"),
        ((X[0, 0], X[0, 0]), "gate must have 1 to 8 dimensions"),
        ((X, X.half()), r"up must have the dtype of gate \(float32\), got float16"),
        ((X, X[0]), "up must have 2 dimensions"),
        ((X, X[:, :7]), r"dimension 1 of up must be 8 \(that of gate\), got shape \[2, 7\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(RuntimeError, match=f"silu_mul: {message}"):
        op.silu_mul(*arguments)


def test_compiled():
    gate, up = inputs((2, 3, 64), torch.float32)
    assert torch.equal(compiled(op.silu_mul, gate, up), op.silu_mul(gate, up))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("up", [0x3F80, 0xC040, 0x7F81, 0x7FFF, 0xFFFF])
def test_every_bfloat16(up, isa):
    """As eager computes it; a NaN stays one, whatever its bits, and no number becomes one."""
    gate = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    up = torch.full((2**16,), up).to(torch.uint16).view(torch.bfloat16)
    with cpu_isa(isa):
        got = op.silu_mul(gate, up)
    torch.testing.assert_close(got, op.eager(gate, up), rtol=2**-6, atol=1e-30, equal_nan=True)
