import pytest
import torch

import sparrow_ext
from sparrow_ext.ops import tree_mask as op
from tests.ops.checks import available_isas, compiled, cpu_isa, random_tree

SIZES = [0, 1, 2, 31, 63, 64, 65, 127, 128]


def trees(nodes: int, batch: int, *, forest: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(nodes)
    rows = [random_tree(nodes, generator, forest=forest) for _ in range(batch)]
    return torch.stack(rows) if rows else torch.empty(0, nodes, dtype=torch.int32)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("forest", [False, True])
@pytest.mark.parametrize("nodes", SIZES)
def test_equals_reference(nodes, forest, isa):
    parent = trees(nodes, 3, forest=forest)
    with cpu_isa(isa):
        anc, depth = sparrow_ext.tree_mask(parent)
    want_anc, want_depth = op.reference(parent)
    assert torch.equal(anc, want_anc) and torch.equal(depth, want_depth)


def test_eager_equals_reference():
    parent = trees(65, 2, forest=True)
    for got, want in zip(op.eager(parent), op.reference(parent), strict=True):
        assert torch.equal(got, want)


def test_empty_batch():
    anc, depth = sparrow_ext.tree_mask(torch.empty(0, 5, dtype=torch.int32))
    assert anc.shape == (0, 5, 1) and depth.shape == (0, 5)


@pytest.mark.parametrize("parent", [[0], [-2], [-1, 1], [-1, 0, 2]])
def test_bad_parent_raises(parent):
    with pytest.raises(RuntimeError, match=r"tree_mask: parent\[0\]\[\d\] must lie in"):
        sparrow_ext.tree_mask(torch.tensor([parent], dtype=torch.int32))


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        (torch.zeros(1, 3), "parent must be int32, got float32"),
        (torch.zeros(3, dtype=torch.int32), "parent must have 2 dimensions"),
        (torch.zeros(1, 129, dtype=torch.int32), "at most 128 nodes"),
        (torch.full((4, 3), -1, dtype=torch.int32).t(), "parent must be contiguous"),
    ],
)
def test_bad_arguments_raise(parent, message):
    with pytest.raises(RuntimeError, match=message):
        sparrow_ext.tree_mask(parent)


def test_opcheck_and_compile():
    parent = trees(65, 2, forest=True)
    torch.library.opcheck(torch.ops.sparrow.tree_mask, (parent,))
    for got, want in zip(compiled(sparrow_ext.tree_mask, parent), op.reference(parent), strict=True):
        assert torch.equal(got, want)
