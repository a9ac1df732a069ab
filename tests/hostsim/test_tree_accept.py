import pytest
import torch

from sparrow_ext.ops import tree_accept as op
from tests.ops.test_tree_accept import SIZES, assert_same, case


@pytest.mark.parametrize("nodes", SIZES)
def test_equals_reference(sim, nodes):
    for seed, (max_path, ragged) in enumerate([(1, False), (2, True), (9, False), (130, True)]):
        tokens, parent, target, counts = case(nodes, 3, forest=seed % 2 == 1, seed=seed)
        arguments = (tokens, parent, target, counts if ragged else None, max_path)
        assert_same(sim.ops.tree_accept(*arguments), op.reference(*arguments))


def test_chain_of_128_is_accepted_whole(sim):
    tokens, parent = torch.arange(128)[None], torch.arange(-1, 127, dtype=torch.int32)[None]
    arguments = (tokens, parent, tokens + 1, None, 128)
    got = sim.ops.tree_accept(*arguments)
    assert got[0].item() == 128
    assert_same(got, op.reference(*arguments))


def test_first_of_duplicate_siblings_in_all_64_bits(sim):
    tokens = torch.tensor([[5, 7 + (1 << 32), 7, 7, 9]])
    parent = torch.tensor([[-1, 0, 0, 0, 3]], dtype=torch.int32)
    target = torch.tensor([[7, 1, 8, 9, 1]])
    assert sim.ops.tree_accept(tokens, parent, target, None, 4)[1].tolist() == [[0, 2, -1, -1]]


@pytest.mark.parametrize("count", [None, -5, 7])
def test_bad_parents_and_counts_are_clamped_and_reported(sim, count):
    #                                   cycle 1 <-> 2, node 3 above itself, node 4 far outside
    parent = torch.tensor([[0, 2, 1, 3, 99]], dtype=torch.int32)
    same = torch.full((1, 5), 6)
    counts = None if count is None else torch.tensor([count], dtype=torch.int32)
    error = torch.zeros(1, dtype=torch.int32)
    num_path, path, out = sim.ops.tree_accept(same, parent, same, counts, 3, error)
    assert error.item() == {None: 1, -5: 2, 7: 3}[count]  # with no node, no parent is looked at
    length = 0 if count == -5 else 1
    assert num_path.tolist() == [length]
    assert path.tolist() == [[0, -1, -1][:length] + [-1] * (3 - length)]
    assert out.tolist() == [[6] * length + [-1] * (3 - length)]


def test_good_trees_leave_the_error_word_clear(sim):
    error = torch.zeros(1, dtype=torch.int32)
    tokens, parent, target, counts = case(64, 3, forest=True)
    sim.ops.tree_accept(tokens, parent, target, counts, 9, error)
    assert error.item() == 0


def test_empty_batch(sim):
    tokens, parent, target, _ = case(5, 1)
    shapes = [tuple(t.shape) for t in sim.ops.tree_accept(tokens[:0], parent[:0], target[:0], None, 3)]
    assert shapes == [(0,), (0, 3), (0, 3)]
