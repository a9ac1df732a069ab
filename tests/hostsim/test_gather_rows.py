import pytest
import torch

from sparrow_ext.ops import gather_rows as op
from tests.ops.checks import DTYPES
from tests.ops.test_gather_rows import inputs, same_bits


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("trailing", [(), (1,), (3,), (2, 64)])
def test_equals_reference(sim, trailing, dtype):
    for seed, (rows, count) in enumerate([(1, 1), (65, 17), (0, 3), (5, 0)]):
        for stride in (False, True):
            arguments = inputs(3, rows, count, trailing, dtype, seed, stride=stride)
            want = arguments[3].clone()
            op.reference(*arguments[:3], want, arguments[4])
            sim.ops.gather_rows(*arguments)
            assert same_bits(arguments[3], want)


def test_rows_longer_than_a_block_and_rows_equal_alone(sim):
    arguments = inputs(3, 12, 9, (4128,), torch.bfloat16, seed=2)  # 516 units of 16 bytes: three blocks
    alone = [a.clone() for a in arguments]
    want = arguments[3].clone()
    op.reference(*arguments[:3], want, arguments[4])
    sim.ops.gather_rows(*arguments)
    assert same_bits(arguments[3], want)
    for b in range(3):
        one = [a[b : b + 1].clone() for a in alone]
        sim.ops.gather_rows(*one)
        assert same_bits(one[3], want[b : b + 1])


def test_bad_values_are_skipped_and_reported(sim):
    src, dst = torch.arange(10.0).view(2, 5), torch.full((2, 4), -1.0)
    index = torch.tensor([[4, -1, 5, 1], [0, 1, 2, 3]], dtype=torch.int32)
    error = torch.zeros(1, dtype=torch.int32)
    sim.ops.gather_rows(src, index, torch.tensor([99, 4], dtype=torch.int32), dst, torch.tensor([0, 2]).int(), error)
    assert error.item() == 2 + 4
    assert dst.tolist() == [[4, -1, -1, 1], [-1, -1, 5, 6]]
    sim.ops.gather_rows(src, index, torch.tensor([-3, 2], dtype=torch.int32), dst, torch.tensor([0, -1]).int())
    assert dst.tolist() == [[4, -1, -1, 1], [6, -1, 5, 6]]


def test_what_sets_which_bit_of_the_error_word(sim):
    def bits(index, count, start):
        index, count, start, error = (torch.tensor(x, dtype=torch.int32) for x in ([index], [count], [start], [0]))
        sim.ops.gather_rows(torch.zeros(1, 5, 300), index, count, torch.zeros(1, 4, 300), start, error)
        return error.item()

    assert bits([0, 4, -1], 2, 2) == 0  # beyond the count nothing is looked at
    assert bits([0, 1, 2], 4, 0) == 2 and bits([0, 1, 2], -1, 0) == 2
    assert bits([0, 5, 2], 2, 0) == 4 and bits([0, -1, 2], 2, 0) == 4 and bits([0, 1, 2], 3, 2) == 4
