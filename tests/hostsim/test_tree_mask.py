import pytest
import torch

from sparrow_ext.ops import tree_mask as op
from tests.test_tree_mask import SIZES, trees


@pytest.mark.parametrize("forest", [False, True])
@pytest.mark.parametrize("nodes", SIZES)
def test_equals_reference(sim, nodes, forest):
    parent = trees(nodes, 3, forest=forest)
    for got, want in zip(sim.ops.tree_mask(parent), op.reference(parent), strict=True):
        assert torch.equal(got, want)


def test_bad_parents_are_roots(sim):
    parent = torch.tensor([[-1, 5, -7, 0, 4]], dtype=torch.int32)
    want = op.reference(torch.tensor([[-1, -1, -1, 0, -1]], dtype=torch.int32))
    for got, expected in zip(sim.ops.tree_mask(parent), want, strict=True):
        assert torch.equal(got, expected)
