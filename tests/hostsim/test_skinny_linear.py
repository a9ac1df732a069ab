import pytest
import torch

from sparrow_ext.ops import skinny_linear as op
from tests.ops.checks import DTYPES, assert_close64, poison, strided
from tests.ops.test_skinny_linear import doubles, inputs, layouts
from tests.ops.test_skinny_linear_group import SIZES, group_inputs

ALIGNED = (152, 48)  # every row starts at 16 bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(145, 45), ALIGNED])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 4), (9,), (17,), (33,), (64,), (65,), (130,)])
def test_close_to_reference(sim, shape, sizes, dtype):
    args = inputs(shape, dtype, sizes)
    got = sim.ops.skinny_linear(*args)
    assert got.dtype == dtype and got.shape == (*shape, sizes[1])
    assert_close64(got, op.eager(*args), op.reference(*doubles(args)), f"{shape} {sizes}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1), (64, 64), (31, 33), (0, 7), (9, 0), (1225, 67), (1288, 65), (2064, 3)])
def test_sizes_and_tails(sim, sizes, dtype):
    args = inputs((3,), dtype, sizes, bias=False)
    assert_close64(sim.ops.skinny_linear(*args), op.eager(*args), op.reference(*doubles(args)), f"{sizes}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(590, 20), (1104, 24)])
def test_same_bits_whatever_m(simulator, sizes, dtype):
    simulator.configure(seed=1)
    x, weight, bias = inputs((100,), dtype, sizes)
    full = simulator.ops.skinny_linear(x, weight, bias)
    assert torch.equal(simulator.ops.skinny_linear(x, weight, bias), full)
    for chosen in ([0], [13], [63], [64], [99], range(5), range(9), range(30), range(33), range(64), range(65)):
        rows = torch.tensor(list(chosen))
        assert torch.equal(simulator.ops.skinny_linear(x[rows], weight, bias), full[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [5, 70])
def test_strided_views_and_the_workspace(sim, m, dtype):
    for sizes in ((145, 45), ALIGNED):
        x, weight, bias = inputs((m,), dtype, sizes)
        want = sim.ops.skinny_linear(x, weight, bias)
        out = strided(torch.zeros(m, sizes[1], dtype=dtype))
        size = sim.ops.skinny_linear_workspace_size(m, *sizes)
        big = torch.full((size + 256,), 255, dtype=torch.uint8)  # all bits: NaN
        sim.ops.skinny_linear_out(strided(x), strided(weight), bias, out, big[:size])
        assert torch.equal(out, want) and out._base.isnan().sum() == out._base.numel() - out.numel()
        assert bool((big[size:] == 255).all())


def test_any_layout_of_x(simulator):
    x, weight, bias = inputs((4, 6), sizes=(8, 5))
    want = simulator.ops.skinny_linear(x, weight, bias)
    for name, view in layouts(x):
        assert torch.equal(simulator.ops.skinny_linear(view, weight, bias).view(want.shape), want), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_row(sim, dtype):
    x, weight, bias = inputs((70,), dtype, (152, 16))
    base = sim.ops.skinny_linear(x, weight, bias)
    bad = x.clone()
    bad[66, 3], bad[2, 0] = float("nan"), float("inf")
    got = sim.ops.skinny_linear(bad, weight, bias)
    others = [m for m in range(70) if m not in (2, 66)]
    assert bool(got[66].isnan().all()) and bool(got[2].isinf().all()) and torch.equal(got[others], base[others])


def test_bad_arguments(simulator):
    args = inputs((4,))
    with pytest.raises(RuntimeError, match="skinny_linear: weight must have the dtype of x"):
        simulator.ops.skinny_linear(args[0].half(), *args[1:])
    with pytest.raises(RuntimeError, match="workspace must have at least"):
        simulator.ops.skinny_linear_out(*args, poison(torch.empty(4, 45)), torch.empty(3, dtype=torch.uint8))


def parts_of(x, weights, biases, ops):
    return [ops.skinny_linear(x, *layer) for layer in zip(weights, biases, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", SIZES)
@pytest.mark.parametrize("m", [0, 1, 2, 8, 16, 31, 63, 64, 65])
def test_a_group_has_the_bits_of_its_parts(simulator, m, outputs, dtype):
    """Aligned, ragged, and one weight among aligned ones that is not."""
    simulator.configure(seed=1)
    for width in (145, 1032):
        x, weights, biases = group_inputs((m,), dtype, outputs, width)
        want = parts_of(x, weights, biases, simulator.ops)
        got = simulator.ops.skinny_linear_group(x, weights, biases)
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
        weights[-1], x = strided(weights[-1]), strided(x)
        got = simulator.ops.skinny_linear_group(x, weights, biases)
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 9, 17, 33])
def test_a_group_is_close_to_the_reference(sim, m, dtype):
    x, weights, biases = group_inputs((m,), dtype, (70, 8, 3), 1032)
    for got, *layer in zip(sim.ops.skinny_linear_group(x, weights, biases), weights, biases, strict=True):
        assert_close64(got, op.eager(x, *layer), op.reference(*doubles([x, *layer])))


def test_a_group_of_whole_blocks_has_the_bits_of_split_parts(simulator):
    """264 tiles in all, and two splits: one launch; each part alone has too few for that, the last a ragged tile."""
    simulator.configure(seed=1)
    x, weights, biases = group_inputs((9,), torch.bfloat16, (131 * 64 + 8, 131 * 64, 5), 1032)
    got = simulator.ops.skinny_linear_group(x, weights, biases)
    for one, other in zip(got, parts_of(x, weights, biases, simulator.ops), strict=True):
        assert torch.equal(one, other)


def test_bad_groups(simulator):
    x, weights, _ = group_inputs((4,), torch.float32, (5, 6, 7), 20)
    with pytest.raises(RuntimeError, match="skinny_linear_group: weights must hold 1 to 3 tensors, got 4"):
        simulator.ops.skinny_linear_group(x, [*weights, weights[0]], [None] * 4)
    with pytest.raises(RuntimeError, match=r"skinny_linear_group: weights\[1\] must have the dtype of x"):
        simulator.ops.skinny_linear_group(x, [weights[0], weights[1].half()], [None, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [2, 9, 33])
def test_outputs_enough_for_whole_blocks_have_the_bits_of_split_ones(simulator, rows, dtype):
    """264 tiles of 64 outputs and two splits: one launch; 128 of these outputs: partial sums and a second launch."""
    simulator.configure(seed=1)
    g = torch.Generator().manual_seed(rows)
    x, weight, bias = (
        torch.randn(*s, generator=g).to(dtype) for s in [(rows, 1032), (263 * 64 + 8, 1032), (263 * 64 + 8,)]
    )
    got = simulator.ops.skinny_linear(x, weight, bias)
    for part in (slice(0, 128), slice(weight.shape[0] - 72, weight.shape[0])):
        assert torch.equal(got[:, part], simulator.ops.skinny_linear(x, weight[part], bias[part]))
