import pytest
import torch
from torch import nn

from sparrow_ext.ops import skinny_linear as op
from tests.ops.checks import DTYPES, assert_close64, available_isas, compiled, cpu_isa, poison, strided


def inputs(shape, dtype=torch.float32, sizes=(145, 45), *, bias=True):
    """x [*shape, K], weight, bias."""
    k, n = sizes
    g = torch.Generator().manual_seed(sum(shape) * 1000 + k + n)
    x, weight, b = (torch.randn(s, generator=g).to(dtype) for s in ((*shape, k), (n, k), (n,)))
    return [x, weight, b if bias else None]


def doubles(args):
    return [a.double() if a is not None else a for a in args]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (2,), (1, 3), (4,), (2, 4), (17,), (63,), (8, 8), (65,), (3, 0), (200,)]
)
def test_close_to_reference(shape, dtype, isa):
    args = inputs(shape, dtype)
    with cpu_isa(isa):
        got = op.skinny_linear(*args)
    assert got.dtype == dtype and got.shape == (*shape, 45)
    assert_close64(got, op.eager(*args), op.reference(*doubles(args)), f"{shape} {isa}")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    "sizes", [(1, 1), (15, 16), (16, 15), (17, 17), (64, 48), (0, 7), (31, 33), (1225, 130), (9, 0)]
)
def test_sizes_and_tails(sizes, rows, dtype, isa):
    args = inputs((rows,), dtype, sizes, bias=False)
    with cpu_isa(isa):
        got = op.skinny_linear(*args)
    assert_close64(got, op.eager(*args), op.reference(*doubles(args)), f"{sizes} {isa}")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(590, 77), (64, 48), (7, 5), (1031, 49)])
def test_same_bits_whatever_m(sizes, dtype, isa):
    x, weight, bias = inputs((200,), dtype, sizes)
    with cpu_isa(isa):
        full = op.skinny_linear(x, weight, bias)
        for m in (1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 63, 64, 65, 130):
            assert torch.equal(op.skinny_linear(x[:m], weight, bias), full[:m]), m
        for row in (0, 13, 63, 64, 199):
            assert torch.equal(op.skinny_linear(x[row], weight, bias), full[row])
        assert torch.equal(op.skinny_linear(x[190:], weight, bias), full[190:])
        assert torch.equal(op.skinny_linear(x.view(4, 50, -1), weight, bias).view(200, -1), full)


def test_the_product_is_hsr_projects():
    """One second stage: the same bits as hsr_project's on the concatenated rows."""
    from sparrow_ext import hsr_project
    from tests.ops.test_hsr_project import inputs as hsr_inputs

    for dtype in DTYPES:
        args = hsr_inputs(9, dtype)
        ids, rows, embed, hidden, weight, bias = args
        x = torch.cat([embed[ids], hidden[rows]], dim=-1)
        assert torch.equal(op.skinny_linear(x, weight, bias), hsr_project(*args))


def test_same_bits_whatever_the_thread_count():
    args, before = inputs((70,), torch.bfloat16, (590, 4000)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = op.skinny_linear(*args)
        torch.set_num_threads(3)
        assert torch.equal(op.skinny_linear(*args), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 5, 70])
def test_strided_rows_are_read_in_place(m, dtype):
    x, weight, bias = inputs((m,), dtype)
    want = op.skinny_linear(x, weight, bias)
    assert torch.equal(op.skinny_linear(strided(x), strided(weight), bias), want)
    out = strided(torch.zeros(m, 45, dtype=dtype))
    assert op.skinny_linear(x, weight, bias, out=out) is out
    assert torch.equal(out, want) and out._base.isnan().sum() == out._base.numel() - out.numel()


def layouts(x):
    """Views with the values of x [4, 6, 8]: other steps between rows, none at all, one row many times."""
    yield "outer step", strided(x)
    yield "columns apart", x.transpose(1, 2).contiguous().transpose(1, 2)
    yield "batch inside", x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "every other row", torch.stack([x, x], dim=2)[:, :, 0]
    yield "extra dimensions", x[:, None, :, None]


def test_any_layout_of_x():
    x, weight, bias = inputs((4, 6), sizes=(8, 5))
    want = op.skinny_linear(x, weight, bias)
    for name, view in layouts(x):
        assert torch.equal(op.skinny_linear(view, weight, bias).view(want.shape), want), name
    repeated = x[:1, :1].expand(4, 6, 8)
    assert torch.equal(op.skinny_linear(repeated, weight, bias), want[:1, :1].expand(4, 6, 5))


def test_workspace_holds_every_smaller_call_and_nothing_beyond_is_written():
    size = op.skinny_linear_workspace_size(64, 145, 45)
    assert size == op.skinny_linear_workspace_size(10**6, 145, 45) > 0
    for m, dtype in [(1, torch.bfloat16), (17, torch.float16), (64, torch.float32), (150, torch.float32)]:
        args = inputs((m,), dtype)
        big = torch.full((size + 256,), 255, dtype=torch.uint8)  # all bits: NaN
        out = poison(torch.empty(m, 45, dtype=dtype))
        op.skinny_linear(*args, out=out, workspace=big[:size])
        assert torch.equal(out, op.skinny_linear(*args)) and bool((big[size:] == 255).all())


def test_far_offsets():
    """A row of x and a row of the weights beyond 2^31 elements: what is not touched is never committed."""
    width, far = 1024, 2**31 // 1024 + 5
    big = torch.empty(far + 2, width, dtype=torch.bfloat16)
    row, weight, _ = inputs((2,), torch.bfloat16, (width, 9), bias=False)
    want = op.skinny_linear(row, weight)
    rows = torch.as_strided(big, (2, width), (far * width, 1))
    rows.copy_(row)
    assert torch.equal(op.skinny_linear(rows, weight), want)


def test_nan_and_infinity_stay_in_their_row():
    x, weight, bias = inputs((70,))
    base = op.skinny_linear(x, weight, bias)
    for first in (0, 65):
        bad = x.clone()
        bad[first + 1, 3], bad[first + 2, 0] = float("nan"), float("inf")
        got = op.skinny_linear(bad, weight, bias)
        assert bool(got[first + 1].isnan().all()) and bool(got[first + 2].isinf().all())
        others = [m for m in range(70) if m not in (first + 1, first + 2)]
        assert torch.equal(got[others], base[others])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"x": torch.zeros(4, 145, dtype=torch.float64)}, "x must be float32 or bfloat16 or float16, got float64"),
        ({"x": torch.zeros(4, 145, dtype=torch.bfloat16)}, "weight must have the dtype of x"),
        ({"x": torch.tensor(1.0)}, "x must have 1 to 8 dimensions"),
        ({"x": torch.zeros(4, 144)}, r"dimension 1 of weight must be 144 \(K"),
        ({"weight": torch.zeros(145)}, "weight must have 2 dimensions"),
        ({"weight": torch.zeros(145, 45).T}, "weight must be dense in its last dimension"),
        ({"bias": torch.zeros(44)}, "dimension 0 of bias must be 45"),
        ({"bias": torch.zeros(45, dtype=torch.float16)}, "bias must have the dtype of x"),
        ({"bias": torch.zeros(90)[::2]}, "bias must be contiguous"),
        ({"out": torch.zeros(3, 45)}, "dimension 0 of out must be 4"),
        ({"out": torch.zeros(2, 2, 45)}, "out must have 2 dimensions"),
        ({"out": torch.zeros(4, 45, dtype=torch.float16)}, "out must have the dtype of x"),
        ({"out": torch.zeros(45).expand(4, 45)}, "out is written: it must not hold an element twice"),
        ({"out": torch.zeros(4, 45), "workspace": torch.zeros(64, dtype=torch.uint8)}, "workspace must have at least"),
        ({"out": torch.zeros(4, 45), "workspace": torch.zeros(9999)}, "workspace must be uint8"),
    ],
)  # fmt: skip
def test_bad_arguments_raise(new, message):
    values = dict(zip(("x", "weight", "bias"), inputs((4,)), strict=True))
    with pytest.raises(RuntimeError, match=message):
        op.skinny_linear(**{**values, **new})


def test_other_bad_calls_raise():
    args = inputs((4,))
    with pytest.raises(ValueError, match="only together with out"):
        op.skinny_linear(*args, workspace=torch.zeros(9999, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match=r"M must lie in \[0, 2147483647\], got -1"):
        op.skinny_linear_workspace_size(-1, 2, 2)
    square = torch.zeros(145, 145)
    with pytest.raises(RuntimeError, match="out is written: it must not overlap x"):
        op.skinny_linear(square, torch.zeros(145, 145), out=square)
    uneven = torch.zeros(2, 3, 2, 45)[:, :, 0]
    with pytest.raises(RuntimeError, match="rows of out must lie one step apart"):
        op.skinny_linear(torch.zeros(3, 2, 145), args[1], out=uneven.transpose(0, 1))


def test_opcheck_and_compile():
    args = inputs((2, 3))
    torch.library.opcheck(torch.ops.sparrow.skinny_linear, args)
    workspace = torch.empty(op.skinny_linear_workspace_size(6, 145, 45), dtype=torch.uint8)
    torch.library.opcheck(torch.ops.sparrow.skinny_linear_out, (*args, torch.zeros(2, 3, 45), workspace))
    assert torch.equal(compiled(op.skinny_linear, *args), op.skinny_linear(*args))


def test_takes_a_layers_parameters():
    layer = nn.Linear(145, 45)
    x = inputs((3,))[0]
    with torch.no_grad():
        torch.testing.assert_close(op.skinny_linear(x, layer.weight, layer.bias), layer(x))
