import pytest
import torch

from sparrow_ext.ops import tree_rerank as op
from tests.ops.test_tree_rerank import assert_same, history


@pytest.mark.parametrize("kind", ["falling", "free", "special"])
@pytest.mark.parametrize("nodes", [1, 2, 63, 64, 65, 127, 128])
def test_equals_reference(sim, nodes, kind):
    entries = {1: 40, 2: 1, 63: 0, 64: 33, 65: 130, 127: 410, 128: 200}[nodes]
    arguments = history(3, entries, kind=kind)
    assert_same(sim.ops.tree_rerank(*arguments, nodes), op.reference(*arguments, nodes))


@pytest.mark.parametrize("kind", ["falling", "special"])
def test_more_entries_than_threads(sim, kind):
    arguments = history(1, 2500, kind=kind)
    assert_same(sim.ops.tree_rerank(*arguments, 128), op.reference(*arguments, 128))


def test_long_chain_falls_with_its_worst_ancestor(sim):
    """1100 entries in one chain: every pointer-jumping round counts, and one chunk hands over to the next."""
    root, score, ids, _ = history(1, 1100, kind="free")
    chain = torch.arange(-1, 1099, dtype=torch.int32)[None]
    score[0] = -torch.arange(1100.0).flip(0)  # rising: each entry counts as the first one
    assert_same(sim.ops.tree_rerank(root, score, ids, chain, 128), op.reference(root, score, ids, chain, 128))
    score[0, 60] = -torch.inf  # and nothing behind a dead one is kept
    got = sim.ops.tree_rerank(root, score, ids, chain, 128)
    assert got[4].item() == 61
    assert_same(got, op.reference(root, score, ids, chain, 128))


def test_bad_parents_are_never_kept_nor_their_children(sim):
    root, score, ids, _ = history(1, 6)
    parent = torch.tensor([[-1, 1, 1, 77, -9, 0]], dtype=torch.int32)  # 1 above itself, 2 below it, 3 and 4 outside
    score[:] = torch.arange(6.0) - 9
    score[0, 5] = -20
    error = torch.zeros(1, dtype=torch.int32)
    tokens, up, _, depth, count = sim.ops.tree_rerank(root, score, ids, parent, 5, error)
    assert error.item() == 1
    assert count.item() == 3 and up.tolist() == [[-1, 0, 1, -1, -1]] and depth.tolist() == [[0, 1, 2, 0, 0]]
    assert tokens.tolist() == [[root.item(), ids[0, 0].item(), ids[0, 5].item(), 0, 0]]


def test_rows_are_bit_equal_to_batch_of_one(sim):
    arguments, error = history(3, 100, kind="special"), torch.zeros(1, dtype=torch.int32)
    together = sim.ops.tree_rerank(*arguments, 70, error)
    assert error.item() == 0
    for b in range(3):
        assert_same(sim.ops.tree_rerank(*(a[b : b + 1] for a in arguments), 70), [t[b : b + 1] for t in together])


def test_empty_batch(sim):
    shapes = [tuple(t.shape) for t in sim.ops.tree_rerank(*history(0, 20), 65)]
    assert shapes == [(0, 65), (0, 65), (0, 65, 2), (0, 65), (0,)]
