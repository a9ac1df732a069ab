import pytest
import torch

from sparrow_ext.ops import tree_expand as op
from tests.ops.test_tree_expand import SHAPES, assert_same, case, clones


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("k", "level", "beam"), [*SHAPES[:5], (32, 1, 1), (32, 0, 32), (33, 2, 13), (9, 63, 2)])
def test_equals_reference(sim, k, level, beam, special):
    arguments = case(3, k, level, beam, seed=level, special=special)
    wanted = clones(arguments)
    want = op.reference(*wanted)
    assert_same(sim.ops.tree_expand(*arguments), want)
    assert_same(arguments[7:], wanted[7:])  # the poison of unwritten slots included


def test_more_candidates_than_threads(sim):
    arguments = case(1, 40, 1, 31, special=True)  # 1240 candidates
    wanted = clones(arguments)
    want = op.reference(*wanted)
    assert_same(sim.ops.tree_expand(*arguments), want)
    assert_same(arguments[7:], wanted[7:])


def test_all_ties_keep_the_first_candidates(sim):
    arguments = case(1, 9, 2, 7)
    arguments[0].fill_(-1.0), arguments[2].fill_(-3.0)
    assert sim.ops.tree_expand(*arguments)[3].tolist() == [[9 + 63 + c for c in range(7)]]


def test_strided_inputs_and_rows_equal_alone(sim):
    arguments = case(3, 8, 2, 8)
    wide = [torch.cat([a, a], 2)[..., :8] for a in arguments[:2]]
    wanted = clones(arguments)
    want = sim.ops.tree_expand(*wanted)
    got = sim.ops.tree_expand(*wide, *arguments[2:])
    assert_same(got, want)
    for b in range(3):
        alone = [a[b : b + 1].clone() if isinstance(a, torch.Tensor) else a for a in case(3, 8, 2, 8)]
        one = sim.ops.tree_expand(*alone)
        assert torch.equal(one[1] + b * 8, want[1][b : b + 1])
        assert_same([one[0], *one[2:]], [t[b : b + 1] for t in (want[0], *want[2:])])


@pytest.mark.parametrize(("index", "bits"), [(-1, 0), (8, 0), (9, 1), (-2, 1), (2**31 - 1, 1)])
def test_beam_indices_outside_the_earlier_levels_are_reported(sim, index, bits):
    """Level 1's candidates start at slot 9: their parents lie below it, or are the root."""
    arguments, error = case(2, 9, 1, 7), torch.tensor([32], dtype=torch.int32)
    arguments[3][1, 4] = index
    sim.ops.tree_expand(*arguments, error)
    assert error.item() == 32 + bits


def test_empty_batch(sim):
    shapes = [tuple(t.shape) for t in sim.ops.tree_expand(*case(0, 8, 1, 4))]
    assert shapes == [(0, 4), (0, 4), (0, 4), (0, 4), (0, 4, 2)]
