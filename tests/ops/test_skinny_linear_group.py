"""skinny_linear_group: each part is what skinny_linear gives with that weight alone, bit by bit."""

import pytest
import torch

import sparrow_ext
from sparrow_ext.ops import skinny_linear as op
from tests.ops.checks import DTYPES, available_isas, compiled, cpu_isa, strided
from tests.ops.test_skinny_linear import layouts

SIZES = [(45,), (48, 96), (45, 1, 7), (0, 50, 3), (50, 0, 49), (0, 0)]  # N of each weight


def group_inputs(shape, dtype=torch.float32, outputs=(45, 1, 7), width=145):
    """x [*shape, K], weights, biases: of every other weight."""
    g = torch.Generator().manual_seed(sum(shape) + width)
    x, *weights = (torch.randn(s, generator=g).to(dtype) for s in ((*shape, width), *((n, width) for n in outputs)))
    biases = [torch.randn(n, generator=g).to(dtype) if i % 2 == 0 else None for i, n in enumerate(outputs)]
    return x, weights, biases


def assert_parts(got, x, weights, biases, what=""):
    assert isinstance(got, list) and len(got) == len(weights)
    for one, *layer in zip(got, weights, biases, strict=True):
        want = op.skinny_linear(x, *layer)
        assert one.is_contiguous() and one.dtype == want.dtype and torch.equal(one, want), what


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", SIZES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 1), (8,), (16,), (31,), (63,), (64,), (65,), (3, 0), (200,)])
def test_each_part_has_the_bits_of_its_weight_alone(shape, outputs, dtype, isa):
    args = group_inputs(shape, dtype, outputs)
    with cpu_isa(isa):
        assert_parts(op.skinny_linear_group(*args), *args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [0, 1, 7, 64, 1225])
def test_widths(width, dtype):
    args = group_inputs((5,), dtype, (50, 3, 48), width)
    assert_parts(op.skinny_linear_group(*args), *args)


def test_same_bits_whatever_the_thread_count():
    args, before = group_inputs((70,), torch.bfloat16, (2000, 300, 301), 590), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = op.skinny_linear_group(*args)
        torch.set_num_threads(3)
        assert all(map(torch.equal, op.skinny_linear_group(*args), one))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 5, 70])
def test_strided_rows(m, dtype):
    x, weights, biases = group_inputs((m,), dtype)
    assert_parts(op.skinny_linear_group(strided(x), [strided(w) for w in weights], biases), x, weights, biases)


def test_any_layout_of_x():
    x, weights, biases = group_inputs((4, 6), outputs=(5, 6), width=8)
    want = op.skinny_linear_group(x, weights, biases)
    for name, view in layouts(x):
        got = op.skinny_linear_group(view, weights, biases)
        assert all(torch.equal(a.view(b.shape), b) for a, b in zip(got, want, strict=True)), name


def test_no_biases_and_the_same_weight_twice():
    x, weights, _ = group_inputs((3,))
    assert_parts(op.skinny_linear_group(x, weights), x, weights, [None] * 3)
    assert_parts(op.skinny_linear_group(x, tuple(weights[:1] * 2)), x, weights[:1] * 2, [None] * 2)


def test_nan_and_infinity_stay_in_their_part():
    x, weights, biases = group_inputs((5,))
    base = op.skinny_linear_group(x, weights, biases)
    weights[1][0, 3], biases[2][1] = float("nan"), float("inf")
    got = op.skinny_linear_group(x, weights, biases)
    assert bool(got[1].isnan().all()) and bool(got[2][:, 1].isinf().all())
    assert torch.equal(got[0], base[0]) and torch.equal(got[2][:, 2:], base[2][:, 2:])


def changed(**new):
    """Arguments with some replaced; weights and biases by the index of the one that is."""
    x, weights, biases = group_inputs((4,))
    for i, weight in new.pop("weights", {}).items():
        weights[i] = weight
    for i, bias in new.pop("biases", {}).items():
        biases[i] = bias
    return {"x": x, "weights": weights, "biases": biases} | new


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(x=torch.zeros(4, 145, dtype=torch.float64)), "x must be float32 or bfloat16 or float16, got float64"),
        (changed(x=torch.zeros(4, 145).half()), r"weights\[0\] must have the dtype of x \(float16\), got float32"),
        (changed(x=torch.tensor(1.0)), "x must have 1 to 8 dimensions"),
        (changed(x=torch.zeros(4, 144)), r"dimension 1 of weights\[0\] must be 144 \(K, the last dimension of x\)"),
        (changed(weights={2: torch.zeros(7, 145).half()}), r"weights\[2\] must have the dtype of x"),
        (changed(weights={1: torch.zeros(145)}), r"weights\[1\] must have 2 dimensions, got shape \[145\]"),
        (changed(weights={1: torch.zeros(1, 9)}), r"dimension 1 of weights\[1\] must be 145 \(K.*got shape \[1, 9\]"),
        (changed(weights={2: torch.zeros(145, 7).T}), r"weights\[2\] must be dense in its last dimension"),
        (changed(weights={2: torch.zeros(7, 145, device="meta")}), r"weights\[2\] must be on the device of x \(cpu\)"),
        (changed(biases={2: torch.zeros(8)}), r"dimension 0 of biases\[2\] must be 7 \(rows of weights\[2\]\)"),
        (changed(biases={1: torch.zeros(1).half()}), r"biases\[1\] must have the dtype of x"),
        (changed(biases={0: torch.zeros(90)[::2]}), r"biases\[0\] must be contiguous"),
        (changed(biases={0: torch.zeros(45, device="meta")}), r"biases\[0\] must be on the device of x \(cpu\)"),
        (changed(weights={}) | {"weights": []}, "weights must hold 1 to 3 tensors, got 0"),
        (changed() | {"weights": [torch.zeros(2, 145)] * 4, "biases": None}, "weights must hold 1 to 3 tensors, got 4"),
        (changed() | {"biases": [None]}, "biases must hold one entry for each of the 3 weights, got 1"),
    ],
)  # fmt: skip
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(RuntimeError, match=f"^sparrow::skinny_linear_group: {message}"):
        op.skinny_linear_group(**arguments)


def test_opcheck_and_compile():
    args = group_inputs((2, 3))
    torch.library.opcheck(torch.ops.sparrow.skinny_linear_group, args)
    assert_parts(compiled(op.skinny_linear_group, *args), *args)


def test_the_eager_composition():
    args = group_inputs((6,))
    for mine, theirs in zip(sparrow_ext.skinny_linear_group(*args), op.eager_group(*args), strict=True):
        torch.testing.assert_close(mine, theirs)
