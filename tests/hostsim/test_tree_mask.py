import pytest
import torch

from sparrow_ext.ops import tree_mask as op
from tests.ops.test_tree_mask import SIZES, trees


@pytest.mark.parametrize("forest", [False, True])
@pytest.mark.parametrize("nodes", SIZES)
def test_equals_reference(sim, nodes, forest):
    parent = trees(nodes, 3, forest=forest)
    for got, want in zip(sim.ops.tree_mask(parent), op.reference(parent), strict=True):
        assert torch.equal(got, want)


def test_bad_parents_are_roots_and_are_reported(sim):
    parent = torch.tensor([[-1, 5, -7, 0, 4]], dtype=torch.int32)
    want = op.reference(torch.tensor([[-1, -1, -1, 0, -1]], dtype=torch.int32))
    for error in (None, torch.zeros(1, dtype=torch.int32)):
        for got, expected in zip(sim.ops.tree_mask(parent, error), want, strict=True):
            assert torch.equal(got, expected)
    assert error.item() == 1


def test_good_trees_leave_the_error_word_as_it_is(sim):
    error = torch.tensor([64], dtype=torch.int32)
    sim.ops.tree_mask(trees(128, 3, forest=True), error)
    assert error.item() == 64
    sim.ops.tree_mask(torch.tensor([[-1, 0], [-1, 1]], dtype=torch.int32), error)
    assert error.item() == 65
