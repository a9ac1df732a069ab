import pytest
import torch

from sparrow_ext.ops import hsr_project as op
from tests.ops.checks import DTYPES, assert_close64, strided
from tests.ops.test_hsr_project import doubles, inputs

ALIGNED = (72, 80, 48)  # every row starts at 16 bytes


def check(sim, args, what):
    got = sim.ops.hsr_project(*args, None)
    assert got.dtype == args[4].dtype
    assert_close64(got, op.eager(*args), op.reference(*doubles(args)), what)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(70, 75, 45), ALIGNED])
@pytest.mark.parametrize("m", [0, 1, 8, 9, 17, 33, 64, 65])
def test_close_to_reference(sim, m, sizes, dtype):
    check(sim, inputs(m, dtype, sizes), f"M={m} {sizes}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1), (32, 32, 64), (1, 30, 33), (64, 0, 7), (0, 64, 7), (600, 625, 67), (1024, 264, 65), (8, 2056, 3)],
)
def test_sizes_and_tails(sim, sizes, dtype):
    check(sim, inputs(3, dtype, sizes, bias=False), f"{sizes}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_stages_of_every_width(simulator, dtype):
    """64 rows: a split is four stages in shared memory, the last one short."""
    simulator.configure(seed=3)
    check(simulator, inputs(64, dtype, (600, 264, 20)), "M=64")
    check(simulator, inputs(30, dtype, (600, 264, 20)), "M=30")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(300, 290, 20), (304, 736 + 64, 24)])
def test_same_bits_whatever_m(simulator, sizes, dtype):
    simulator.configure(seed=1)
    args = inputs(64, dtype, sizes, none_rows=True)
    full = simulator.ops.hsr_project(*args, None)
    assert torch.equal(simulator.ops.hsr_project(*args, None), full)
    for chosen in ([0], [13], [63], range(5), range(9), range(30), range(33)):
        rows = torch.tensor(list(chosen))
        assert torch.equal(simulator.ops.hsr_project(args[0][rows], args[1][rows], *args[2:], None), full[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [5, 70])
def test_strided_views(sim, m, dtype):
    for sizes in ((70, 75, 45), ALIGNED):
        args = inputs(m, dtype, sizes)
        views = [*args[:2], *(strided(a) for a in args[2:5]), args[5]]
        want = sim.ops.hsr_project(*args, None)
        out = sim.ops.hsr_project(*views, None)
        # The library's GEMM may add in another order for another layout.
        torch.testing.assert_close(out, want, rtol=0, atol=0 if m <= 64 or dtype == torch.float32 else 0.15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [8, 70])
@pytest.mark.parametrize("valid", [0, 5, 8])
def test_num_rows_and_poison(sim, m, valid, dtype):
    args = inputs(m, dtype, ALIGNED)
    args[0][valid:], args[1][valid:] = 10**12, -77  # never looked at
    count = torch.tensor([valid], dtype=torch.int32)
    want = sim.ops.hsr_project(args[0][:valid], args[1][:valid], *args[2:], None)
    got = sim.ops.hsr_project(*args, count)
    tolerance = {"rtol": 0, "atol": 0 if m <= 64 or dtype == torch.float32 else 0.15}
    torch.testing.assert_close(got[:valid], want, **tolerance)
    assert not got[valid:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [6, 70])
def test_bad_indices_and_counts_take_zeros(sim, m, dtype):
    args = inputs(m, dtype, ALIGNED)
    zero = [*args]
    zero[2], zero[3] = (torch.cat([t, torch.zeros(1, t.shape[1], dtype=dtype)]) for t in args[2:4])
    zero[0], zero[1] = args[0].clone(), args[1].clone()
    for i, bad in enumerate((-1, 50, 2**62)):
        args[0][i], zero[0][i] = bad, 50
    for i, bad in enumerate((-1, 33, -(2**31)), start=2):
        args[1][i], zero[1][i] = bad, 33
    want = sim.ops.hsr_project(*zero, None)
    for count, bits in ((m, 4), (m + 5, 2 + 4), (2**31 - 1, 2 + 4)):
        error = torch.zeros(1, dtype=torch.int32)
        assert torch.equal(sim.ops.hsr_project(*args, torch.tensor([count], dtype=torch.int32), error), want)
        assert error.item() == bits
    error = torch.zeros(1, dtype=torch.int32)
    assert not sim.ops.hsr_project(*args, torch.tensor([-3], dtype=torch.int32), error).any()
    assert error.item() == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [6, 64, 70])
def test_each_bad_index_of_a_valid_row_is_reported(simulator, m, dtype):
    simulator.configure(seed=1)
    for at, values in ((0, (-1, 50)), (1, (-2, 33))):
        for row in (0, m - 1):
            for value in values:
                args, error = inputs(m, dtype, ALIGNED, none_rows=True), torch.zeros(1, dtype=torch.int32)
                simulator.ops.hsr_project(*args, None, error)
                assert error.item() == 0
                args[at][row] = value
                simulator.ops.hsr_project(*args, torch.tensor([row], dtype=torch.int32), error)
                assert error.item() == 0  # not among the valid rows
                simulator.ops.hsr_project(*args, None, error)
                assert error.item() == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_row(sim, dtype):
    args = inputs(4, dtype, (72, 80, 16))
    args[0] = torch.tensor([0, 1, 2, 3])
    base = sim.ops.hsr_project(*args, None)
    args[2] = args[2].clone()
    args[2][1, 3], args[2][2, 0] = float("nan"), float("inf")
    got = sim.ops.hsr_project(*args, None)
    assert bool(got[1].isnan().all()) and bool(got[2].isinf().all()) and torch.equal(got[[0, 3]], base[[0, 3]])


def test_far_offsets(simulator):
    width, far = 1024, 2**31 // 1024 + 5
    embed = torch.empty(far + 1, width, dtype=torch.bfloat16)
    embed[far] = torch.randn(width).bfloat16()
    _, rows, _, hidden, weight, _ = inputs(1, torch.bfloat16, (width, 16, 9))
    got = simulator.ops.hsr_project(torch.tensor([far]), rows, embed, hidden, weight, None, None)
    near = simulator.ops.hsr_project(torch.tensor([0]), rows, embed[far:], hidden, weight, None, None)
    assert torch.equal(got, near)


def test_bad_arguments(simulator):
    args = inputs(4)
    with pytest.raises(RuntimeError, match="hsr_project: token_ids must be int64"):
        simulator.ops.hsr_project(args[0].int(), *args[1:], None)
