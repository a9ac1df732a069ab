import itertools
from collections import defaultdict

import pytest
import torch

from sparrow_ext.ops import tree_accept as op
from tests.ops.checks import available_isas, compiled, cpu_isa, random_tree

SIZES = [0, 1, 2, 31, 63, 64, 65, 127, 128]


def case(nodes: int, batch: int, *, vocab: int = 3, forest: bool = False, seed: int = 0):
    """Few tokens: duplicate siblings and long paths are common."""
    generator = torch.Generator().manual_seed(1000 * seed + nodes)
    tokens = torch.randint(0, vocab, (batch, nodes), generator=generator)
    target = torch.randint(0, vocab, (batch, nodes), generator=generator)
    parent = torch.stack([random_tree(nodes, generator, forest=forest) for _ in range(batch)])
    counts = torch.randint(0, nodes + 1, (batch,), generator=generator, dtype=torch.int32)
    return tokens, parent, target, counts


def assert_same(got, want):
    for ours, expected in zip(got, want, strict=True):
        assert ours.dtype == expected.dtype and torch.equal(ours, expected)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("nodes", SIZES)
def test_equals_reference(nodes, ragged, isa):
    for seed, max_path in enumerate([1, 2, 9, 130]):
        tokens, parent, target, counts = case(nodes, 3, forest=seed % 2 == 1, seed=seed)
        counts = counts if ragged else None
        with cpu_isa(isa):
            got = op.tree_accept(tokens, parent, target, counts, max_path)
        assert_same(got, op.reference(tokens, parent, target, counts, max_path))
        assert_same(op.eager(tokens, parent, target, counts, max_path), got)


def test_rows_are_bit_equal_to_batch_of_one():
    tokens, parent, target, counts = case(65, 3, seed=7)
    together = op.tree_accept(tokens, parent, target, counts, 8)
    for b in range(3):
        rows = slice(b, b + 1)
        assert_same(
            op.tree_accept(tokens[rows], parent[rows], target[rows], counts[rows], 8), [t[rows] for t in together]
        )


def test_chain_of_128_is_accepted_whole():
    tokens = torch.arange(128)[None]
    parent = torch.arange(-1, 127, dtype=torch.int32)[None]
    num_path, path, out = op.tree_accept(tokens, parent, tokens + 1, None, 128)
    assert num_path.item() == 128
    assert torch.equal(path[0], torch.arange(128, dtype=torch.int32)) and torch.equal(out, tokens + 1)


def test_duplicate_sibling_and_second_root_are_never_followed():
    #        0:5 -> 1:7, 2:7 -> (of 2) 3:9;    4:7 is another root, 5:9 its child
    tokens = torch.tensor([[5, 7, 7, 9, 7, 9]])
    parent = torch.tensor([[-1, 0, 0, 2, -1, 4]], dtype=torch.int32)
    target = torch.tensor([[7, 8, 9, 1, 9, 1]])
    num_path, path, out = op.tree_accept(tokens, parent, target, None, 4)
    assert num_path.tolist() == [2] and path.tolist() == [[0, 1, -1, -1]] and out.tolist() == [[7, 8, -1, -1]]


def test_tokens_of_any_value_match_in_all_64_bits():
    tokens = torch.tensor([[0, 1 << 40, -1]])
    parent = torch.tensor([[-1, 0, 1]], dtype=torch.int32)
    target = torch.tensor([[(1 << 40) + (1 << 32), 0, 0]])
    assert op.tree_accept(tokens, parent, target, None, 3)[0].item() == 1
    target = torch.tensor([[1 << 40, -1, 3]])
    assert op.tree_accept(tokens, parent, target, None, 3)[2].tolist() == [[1 << 40, -1, 3]]


def deepest_match(tokens, parent, target):
    """The tempting rule: of all accepted nodes take a deepest one (lowest index on ties) and its path."""
    paths = {0: [0]}
    for i in range(1, len(tokens)):
        up = parent[i]
        if up in paths and tokens[i] == target[up]:
            paths[i] = [*paths[up], i]
    return max(paths.values(), key=len)


def test_walk_is_lossless_where_the_deepest_match_is_not():
    """Exact enumeration: two siblings with the same token, each with its own independent draw from the target.

    The second emitted token must follow the target's distribution after token 0, whatever the tree looks like.
    """
    after = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # the target's distribution after "root, 0"
    tokens, parent = (
        [9, 0, 0, 0, 1],
        [-1, 0, 0, 1, 2],
    )  # 1 and 2 are duplicates; 3 (token 0) below 1, 4 (token 1) below 2
    draws = torch.tensor([[0, *pair, 2, 2] for pair in itertools.product(range(3), repeat=2)])
    weight = after[draws[:, 1]] * after[draws[:, 2]]
    rows = draws.shape[0]
    _, _, out = op.tree_accept(
        torch.tensor([tokens]).repeat(rows, 1),
        torch.tensor([parent], dtype=torch.int32).repeat(rows, 1),
        draws,
        None,
        4,
    )
    ours = torch.zeros(3, dtype=torch.float64).index_add_(0, out[:, 1], weight)
    torch.testing.assert_close(ours, after, rtol=0, atol=1e-15)
    deepest: dict[int, float] = defaultdict(float)
    for draw, w in zip(draws.tolist(), weight.tolist(), strict=True):
        deepest[draw[deepest_match(tokens, parent, draw)[1]]] += w
    assert abs(deepest[1] - 0.3) > 0.05  # 0.36: the rule favours the draw that its drafted child matches


def test_empty_batch_and_empty_tree():
    num_path, path, out = op.tree_accept(*(t[:0] for t in case(5, 1)[:3]), None, 3)
    assert num_path.shape == (0,) and path.shape == (0, 3) and out.shape == (0, 3)
    num_path, path, out = op.tree_accept(*case(0, 2)[:3], None, 3)
    assert num_path.tolist() == [0, 0] and bool((path == -1).all()) and bool((out == -1).all())


LONG, INT = torch.int64, torch.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(1, 3, dtype=INT)}, "tokens must be int64, got int32"),
        ({"parent": torch.zeros(1, 3)}, "parent must be int32, got float32"),
        ({"target": torch.zeros(1, 3)}, "target must be int64, got float32"),
        ({"num_nodes": torch.zeros(1, dtype=LONG)}, "num_nodes must be int32, got int64"),
        ({"tokens": torch.zeros(3, dtype=LONG)}, "tokens must have 2 dimensions"),
        ({"parent": torch.full((1, 4), -1, dtype=INT)}, r"dimension 1 of parent must be 3 \(N\), got shape \[1, 4\]"),
        ({"target": torch.zeros(2, 3, dtype=LONG)}, r"dimension 0 of target must be 1 \(B\)"),
        ({"num_nodes": torch.zeros(2, dtype=INT)}, r"dimension 0 of num_nodes must be 1 \(B\)"),
        ({"tokens": torch.zeros(1, 6, dtype=LONG)[:, ::2]}, "tokens must be contiguous"),
        ({"max_path": 0}, r"max_path must lie in \[1, 2147483647\], got 0"),
        ({"num_nodes": torch.tensor([4], dtype=INT)}, r"num_nodes\[0\] must lie in \[0, 3\], got 4"),
        ({"num_nodes": torch.tensor([-1], dtype=INT)}, r"num_nodes\[0\] must lie in \[0, 3\], got -1"),
        ({"parent": torch.tensor([[-1, 0, 2]], dtype=INT)}, r"parent\[0\]\[2\] must lie in \[-1, 2\), got 2"),
        ({"parent": torch.tensor([[-1, -2, 0]], dtype=INT)}, r"parent\[0\]\[1\] must lie in \[-1, 1\), got -2"),
    ],
)
def test_bad_arguments_raise(change, message):
    arguments = {
        "tokens": torch.zeros(1, 3, dtype=LONG),
        "parent": torch.full((1, 3), -1, dtype=INT),
        "target": torch.zeros(1, 3, dtype=LONG),
        "num_nodes": None,
        "max_path": 3,
    }
    with pytest.raises(RuntimeError, match="tree_accept: .*" + message):
        op.tree_accept(**(arguments | change))


def test_more_than_128_nodes_raise():
    tokens = torch.zeros(1, 129, dtype=LONG)
    with pytest.raises(RuntimeError, match="at most 128 nodes"):
        op.tree_accept(tokens, torch.full((1, 129), -1, dtype=INT), tokens, None, 4)


def test_opcheck_and_compile():
    tokens, parent, target, counts = case(31, 2)
    for count in (counts, None):
        torch.library.opcheck(torch.ops.sparrow.tree_accept, (tokens, parent, target, count, 6))
    got = compiled(op.tree_accept, tokens, parent, target, counts, 6)
    assert_same(got, op.reference(tokens, parent, target, counts, 6))
