import pytest
import torch

from sparrow_ext.ops import hsr_project as op
from tests.ops.checks import DTYPES, assert_close64, available_isas, compiled, cpu_isa, strided

V, R = 50, 33


def inputs(m, dtype=torch.float32, sizes=(70, 75, 45), *, bias=True, none_rows=False):
    """token_ids, row_index, embed, hidden, weight, bias; with `none_rows` some row_index are -1."""
    e, h, o = sizes
    g = torch.Generator().manual_seed(m * 1000 + e + h + o)
    tables = [torch.randn(s, generator=g).to(dtype) for s in ((V, e), (R, h), (o, e + h), (o,))]
    ids = torch.randint(0, V, (m,), generator=g)
    rows = torch.randint(-1 if none_rows else 0, R, (m,), generator=g, dtype=torch.int32)
    if none_rows and m:
        rows[0] = -1
    return [ids, rows, *tables[:3], tables[3] if bias else None]


def doubles(args):
    return [a.double() if a is not None and a.is_floating_point() else a for a in args]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 8, 17, 63, 64, 65, 513])
def test_close_to_reference(m, dtype, isa):
    args = inputs(m, dtype)
    with cpu_isa(isa):
        got = op.hsr_project(*args)
    assert got.dtype == dtype
    assert_close64(got, op.eager(*args), op.reference(*doubles(args)), f"M={m} {isa}")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (32, 32, 32), (1, 30, 33), (64, 0, 7), (600, 625, 130)])
def test_sizes_and_tails(sizes, dtype, isa):
    args = inputs(5, dtype, sizes, bias=False)
    with cpu_isa(isa):
        got = op.hsr_project(*args)
    assert_close64(got, op.eager(*args), op.reference(*doubles(args)), f"{sizes} {isa}")


@pytest.mark.parametrize("m", [3, 70])
def test_missing_hidden_row_is_zero(m):
    args = inputs(m, none_rows=True)
    got = op.hsr_project(*args)
    zero_row = [*args]
    zero_row[3] = torch.cat([args[3], torch.zeros(1, args[3].shape[1])])
    zero_row[1] = torch.where(args[1] < 0, R, args[1])
    assert torch.equal(got, op.hsr_project(*zero_row))
    assert_close64(got, op.eager(*zero_row), op.reference(*doubles(args)))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_whatever_m(dtype, isa):
    args = inputs(64, dtype, (300, 290, 77), none_rows=True)
    with cpu_isa(isa):
        full = op.hsr_project(*args)
        for m in (1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 63):
            assert torch.equal(op.hsr_project(args[0][:m], args[1][:m], *args[2:]), full[:m]), m
        for row in (0, 13, 63):
            assert torch.equal(op.hsr_project(args[0][row : row + 1], args[1][row : row + 1], *args[2:])[0], full[row])


def test_same_bits_whatever_the_thread_count():
    args, before = inputs(8, torch.bfloat16, (300, 290, 4000)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = op.hsr_project(*args)
        torch.set_num_threads(3)
        assert torch.equal(op.hsr_project(*args), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [5, 70])
def test_strided_views(m, dtype):
    args = inputs(m, dtype)
    views = [*args[:2], *(strided(a) for a in args[2:5]), args[5]]
    assert torch.equal(op.hsr_project(*views), op.hsr_project(*args))


@pytest.mark.parametrize("m", [8, 100])
@pytest.mark.parametrize("valid", [0, 1, 5, 8])
def test_num_rows(m, valid):
    args = inputs(m)
    args[0][valid:], args[1][valid:] = 10**12, -77  # never looked at
    count = torch.tensor([valid], dtype=torch.int32)
    want = op.hsr_project(args[0][:valid], args[1][:valid], *args[2:])
    got = op.hsr_project(*args, num_rows=count)
    assert torch.equal(got[:valid], want) and not got[valid:].any()


def test_far_offsets():
    """A table row beyond 2^31 elements: the untouched part of the allocation is never committed."""
    width, far = 1024, 2**31 // 1024 + 5
    embed = torch.empty(far + 1, width, dtype=torch.bfloat16)
    embed[far] = torch.randn(width).bfloat16()
    _, rows, _, hidden, weight, _ = inputs(1, torch.bfloat16, (width, 16, 9))
    got = op.hsr_project(torch.tensor([far]), rows, embed, hidden, weight)
    assert torch.equal(got, op.hsr_project(torch.tensor([0]), rows, embed[far:], hidden, weight))


def test_nan_and_infinity_stay_in_their_row():
    args = inputs(4)
    clean = op.hsr_project(*args)
    args[0], args[2] = torch.tensor([0, 1, 2, 3]), args[2].clone()
    base = op.hsr_project(*args)
    args[2][1, 3], args[2][2, 0] = float("nan"), float("inf")
    got = op.hsr_project(*args)
    assert bool(got[1].isnan().all()) and bool(got[2].isinf().all())
    assert torch.equal(got[[0, 3]], base[[0, 3]]) and clean.isfinite().all()


def test_fold_embedding():
    ids, rows, embed, hidden, weight, bias = inputs(6)
    table = op.fold_embedding(embed, weight, bias)
    folded = table[ids] + hidden[rows] @ weight[:, embed.shape[1] :].T
    torch.testing.assert_close(folded, op.hsr_project(ids, rows, embed, hidden, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 7, 64, 70])
def test_folded_form_equals_the_plain_one(m, dtype):
    ids, rows, embed, hidden, weight, bias = inputs(m, dtype, none_rows=True)
    table = op.fold_embedding(embed, weight, bias)
    got = op.hsr_project_folded(ids, rows, table, hidden, weight[:, embed.shape[1] :])
    want = op.reference(*doubles([ids, rows, embed, hidden, weight, bias]))
    states = hidden[rows.clamp(min=0)].masked_fill(rows[:, None] < 0, 0)
    eager = table[ids] + states @ weight[:, embed.shape[1] :].T
    assert_close64(got, eager, want, f"M={m}")


def replaced(**new):
    names = ["token_ids", "row_index", "embed", "hidden", "weight", "bias"]
    values = dict(zip(names, inputs(4), strict=True))
    return {**values, **new}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"token_ids": torch.zeros(4, dtype=torch.int32)}, "token_ids must be int64, got int32"),
        ({"token_ids": torch.zeros(8, dtype=torch.int64)[::2]}, "token_ids must be contiguous"),
        ({"row_index": torch.zeros(4, dtype=torch.int64)}, "row_index must be int32, got int64"),
        ({"row_index": torch.zeros(3, dtype=torch.int32)}, "dimension 0 of row_index must be 4"),
        ({"embed": torch.zeros(V, 70, dtype=torch.bfloat16)}, "embed must have the dtype of weight"),
        ({"embed": torch.zeros(70, V).T}, "embed must be dense in its last dimension"),
        ({"hidden": torch.zeros(R, 74)}, "dimension 1 of weight must be 144"),
        ({"weight": torch.zeros(45, 145, dtype=torch.float64)}, "weight must be float32 or bfloat16 or float16"),
        ({"weight": torch.zeros(145, 45).T}, "weight must be dense"),
        ({"bias": torch.zeros(44)}, "dimension 0 of bias must be 45"),
        ({"num_rows": torch.tensor([5], dtype=torch.int32)}, r"num_rows must lie in \[0, 4\], got 5"),
        ({"num_rows": torch.tensor([-1], dtype=torch.int32)}, r"num_rows must lie in \[0, 4\], got -1"),
        ({"num_rows": torch.tensor([1])}, "num_rows must be int32"),
        ({"token_ids": torch.tensor([0, 1, V, 0])}, r"token_ids\[2\] must lie in \[0, 50\), got 50"),
        ({"token_ids": torch.tensor([0, -1, 0, 0])}, r"token_ids\[1\] must lie in"),
        (
            {"row_index": torch.tensor([0, 1, 2, R], dtype=torch.int32)},
            r"row_index\[3\] must lie in \[-1, 33\), got 33",
        ),
        (
            {"row_index": torch.tensor([0, -2, 2, 0], dtype=torch.int32)},
            r"row_index\[1\] must lie in \[-1, 33\), got -2",
        ),
    ],
)
def test_bad_arguments_raise(new, message):
    with pytest.raises(RuntimeError, match=message):
        op.hsr_project(**replaced(**new))


def test_opcheck_and_compile():
    args, count = inputs(5, none_rows=True), torch.tensor([3], dtype=torch.int32)
    torch.library.opcheck(torch.ops.sparrow.hsr_project, (*args, count))
    assert torch.equal(compiled(op.hsr_project, *args), op.hsr_project(*args))
