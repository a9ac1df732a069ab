import pytest
import torch

from sparrow_ext.ops import argmax_rows as op
from tests.ops.checks import DTYPES, available_isas, compiled, cpu_isa, strided

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 15, 63, 64, 65, 127, 128, 1000, 8192])
def test_equals_torch(vocab, dtype, isa):
    x = torch.randn(3, 7, vocab, generator=torch.Generator().manual_seed(vocab)).to(dtype)  # bfloat16 has ties
    with cpu_isa(isa):
        got, flat = op.argmax_rows(x), op.argmax_rows(x.flatten(0, 1))
    assert torch.equal(got, x.argmax(-1)) and torch.equal(got, op.reference(x))
    assert torch.equal(flat, got.flatten())


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [3, 64, 200])
def test_every_position_wins(vocab, dtype, isa):
    x = torch.full((vocab, vocab), -3.0, dtype=dtype)
    x.fill_diagonal_(-2.0)
    with cpu_isa(isa):
        assert torch.equal(op.argmax_rows(x), torch.arange(vocab))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "values",
    [
        {},  # all equal: the first
        {3: 5.0, 90: 5.0},
        {70: NAN},
        {90: NAN, 65: NAN, 2: INF},
        {0: NAN},
        {99: INF, 98: INF},
        {98: -0.0},
    ],
)
@pytest.mark.parametrize("fill", [0.0, -INF, -1.0])
def test_ties_and_special_values(fill, values, dtype, isa):
    x = torch.full((1, 100), fill, dtype=dtype)
    for at, value in values.items():
        x[0, at] = value
    with cpu_isa(isa):
        assert op.argmax_rows(x).tolist() == x.argmax(-1).tolist() == op.reference(x).tolist()


@pytest.mark.parametrize("fill", [-INF, NAN])
def test_nothing_but_one_value(fill):
    assert op.argmax_rows(torch.full((2, 130), fill)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows(dtype):
    x = torch.randn(3, 5, 130, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(op.argmax_rows(strided(x)), x.argmax(-1))
    assert torch.equal(op.argmax_rows(x.transpose(0, 1)), x.transpose(0, 1).argmax(-1))
    assert torch.equal(op.argmax_rows(x[1:2].expand(4, 5, 130)), x[1:2].expand(4, 5, 130).argmax(-1))


def test_rows_do_not_depend_on_batch_or_threads():
    x = torch.randn(80, 8192, generator=torch.Generator().manual_seed(1))
    alone, before = [int(op.argmax_rows(row[None])) for row in x], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            assert op.argmax_rows(x).tolist() == alone
        finally:
            torch.set_num_threads(before)


def test_offsets_beyond_int32():
    stride = 2**31 + 64
    rows = torch.empty(stride + 70, dtype=torch.bfloat16).as_strided((2, 70), (stride, 1))  # two rows are touched
    rows.copy_(torch.arange(70).expand(2, 70))
    rows[1, 5] = 1000.0
    assert op.argmax_rows(rows).tolist() == [69, 5]


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (2, 0, 5)])
def test_empty(shape):
    assert op.argmax_rows(torch.empty(shape)).shape == shape[:-1]


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (
            torch.zeros(2, 3, dtype=torch.float64),
            "argmax_rows: logits must be float32 or bfloat16 or float16, got float64",
        ),
        (torch.zeros(3), r"logits must have 2 or 3 dimensions, got shape \[3\]"),
        (torch.zeros(1, 1, 2, 3), "logits must have 2 or 3 dimensions"),
        (torch.zeros(2, 0), r"a vocabulary of at least 1, got shape \[2, 0\]"),
        (torch.zeros(3, 2).t(), "logits must be dense in its last dimension"),
    ],
)
def test_bad_arguments_raise(logits, message):
    with pytest.raises(RuntimeError, match=message):
        op.argmax_rows(logits)


def test_opcheck_and_compile():
    for x in (torch.randn(3, 70), torch.randn(2, 3, 70).bfloat16()):
        torch.library.opcheck(torch.ops.sparrow.argmax_rows, (x,))
        assert torch.equal(compiled(op.argmax_rows, x), x.argmax(-1))
