import random

import pytest
import torch

from sparrow_ext.ops import tree_expand, tree_mask
from sparrow_ext.ops import tree_rerank as op
from tests.ops.checks import available_isas, compiled, cpu_isa

INT, LONG, INF = torch.int32, torch.int64, torch.inf
NODES = [1, 2, 31, 63, 64, 65, 127, 128]


def history(batch: int, entries: int, *, seed: int = 0, kind: str = "falling"):
    """Falling scores as tree_expand writes them; "free" ones may rise; "special" adds ties, NaN and infinities."""
    generator = torch.Generator().manual_seed(seed + entries)
    score = -torch.rand(batch, entries, generator=generator) * 10
    parent = torch.tensor(
        [
            [int(torch.randint(-1, i, (), generator=generator)) if i else -1 for i in range(entries)]
            for _ in range(batch)
        ],
        dtype=INT,
    ).view(batch, entries)
    if kind == "special":
        odd = torch.tensor([torch.nan, -INF, INF, 0.0, -0.0, 2.0])
        pick = torch.randint(0, 20, score.shape, generator=generator)
        score = torch.where(pick < 6, odd[pick.clamp(max=5)], score.round())
    if kind == "falling":
        for b in range(batch):
            for i in range(entries):
                if parent[b, i] >= 0:
                    score[b, i] += score[b, parent[b, i]]
    ids = torch.randint(0, 1 << 40, (batch, entries), generator=generator)
    return torch.randint(0, 1 << 40, (batch,), generator=generator), score, ids, parent


def assert_same(got, want):
    for ours, expected in zip(got, want, strict=True):
        assert ours.dtype == expected.dtype and torch.equal(ours, expected)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("kind", ["falling", "free", "special"])
@pytest.mark.parametrize("nodes", NODES)
def test_equals_reference(nodes, kind, isa):
    for entries in (0, 1, 40, 130, 410):
        arguments = history(3, entries, kind=kind)
        with cpu_isa(isa):
            got = op.tree_rerank(*arguments, nodes)
        assert_same(got, op.reference(*arguments, nodes))


@pytest.mark.parametrize("nodes", NODES)
def test_eager_equals_ours_on_falling_scores_without_ties(nodes):
    for entries in (1, 40, 410):
        arguments = history(2, entries)
        assert_same(op.eager(*arguments, nodes), op.tree_rerank(*arguments, nodes))


@pytest.mark.parametrize("isa", available_isas())
def test_thousands_of_entries(isa):
    for kind in ("falling", "special"):
        arguments = history(1, 4000, kind=kind)
        with cpu_isa(isa):
            assert_same(op.tree_rerank(*arguments, 128), op.reference(*arguments, 128))


@pytest.mark.parametrize("kind", ["falling", "free", "special"])
def test_closed_under_parents_and_ordered(kind):
    for seed in range(5):
        _, parent, anc, depth, count = op.tree_rerank(*history(3, 300, seed=seed, kind=kind), 65)
        want_anc, want_depth = tree_mask.tree_mask(parent)  # raises where a parent does not precede its child
        assert torch.equal(anc, want_anc) and torch.equal(depth, want_depth)
        for b, n in enumerate(count.tolist()):
            assert bool((parent[b, 1:n] >= 0).all()) and bool((parent[b, n:] == -1).all()) and parent[b, 0] == -1


def test_all_ties_keep_the_first_entries():
    root, score, ids, _ = history(1, 200)
    chain = torch.arange(-1, 199, dtype=INT)[None]
    tokens, parent, _, depth, count = op.tree_rerank(root, torch.full_like(score, -1.5), ids, chain, 128)
    assert count.item() == 128 and torch.equal(tokens[0, 1:], ids[0, :127])
    assert torch.equal(parent[0], torch.arange(-1, 127, dtype=INT)) and depth[0, -1] == 127


def test_minus_zero_ties_with_zero():
    score, parent = torch.tensor([[-1.0, -0.0, 0.0]]), torch.full((1, 3), -1, dtype=INT)
    assert op.tree_rerank(torch.tensor([9]), score, torch.tensor([[10, 11, 12]]), parent, 2)[0].tolist() == [[9, 11]]


def test_a_child_scoring_above_its_parent_never_loses_it():
    score = torch.tensor([[-5.0, -1.0, -2.0, -3.0]])
    parent = torch.tensor([[-1, 0, -1, -1]], dtype=INT)  # entry 1 counts as -5, like its parent, and comes after it
    tokens, up, *_, count = op.tree_rerank(torch.tensor([9]), score, torch.tensor([[10, 11, 12, 13]]), parent, 4)
    assert tokens.tolist() == [[9, 10, 12, 13]] and up.tolist() == [[-1, 0, 0, 0]] and count.item() == 4


def test_children_of_impossible_parents_are_dropped_and_the_rest_is_padding():
    score = torch.tensor([[torch.nan, -1.0, -INF, -1.0, -2.0]])
    parent = torch.tensor([[-1, 0, -1, 2, -1]], dtype=INT)
    tokens, up, anc, depth, count = op.tree_rerank(torch.tensor([9]), score, torch.arange(5)[None] + 10, parent, 5)
    assert count.item() == 2 and tokens.tolist() == [[9, 14, 0, 0, 0]] and up.tolist() == [[-1, 0, -1, -1, -1]]
    assert anc[0, :, 0].tolist() == [1, 3, 4, 8, 16] and depth.tolist() == [[0, 1, 0, 0, 0]]


def test_rows_are_bit_equal_to_batch_of_one():
    arguments = history(3, 300, kind="special")
    together = op.tree_rerank(*arguments, 100)
    for b in range(3):
        assert_same(op.tree_rerank(*(a[b : b + 1] for a in arguments), 100), [t[b : b + 1] for t in together])


# --- the whole draft tree against EAGLE-2 written down plainly ---


def toy_model(path: tuple[int, ...], k: int) -> tuple[list[float], list[int]]:
    """A deterministic drafter: k tokens and log-probabilities that only depend on the path.

    The log-probabilities are multiples of 2^-16 above -16, so their sums over 6 levels are exact in float32.
    """
    rng = random.Random(hash(path))
    return sorted((-rng.randrange(1 << 20) / 65536 for _ in range(k)), reverse=True), rng.sample(range(1000), k)


def eagle2(root: int, depth: int, width: int, total: int):
    """Expand the `width` best paths of each level, then keep the `total` best candidates of all levels."""
    found: list[tuple[float, tuple[int, ...]]] = []  # (path score, path), in order of creation
    frontier = [(0.0, (root,))]
    for _ in range(depth):
        level = []
        for score, path in frontier:
            level += [(score + logp, (*path, token)) for logp, token in zip(*toy_model(path, width), strict=True)]
        found += level
        frontier = sorted(level, key=lambda node: -node[0])[:width]  # stable: the earlier one wins ties
    best = sorted(range(len(found)), key=lambda i: -found[i][0])[:total]
    return [found[i][1] for i in sorted(best)], frontier


def draft_with_ops(roots: list[int], depth: int, width: int, nodes: int):
    """The same through tree_expand and tree_rerank, batched. Returns the trees' arguments and the last beam."""
    batch, entries = len(roots), width + (depth - 1) * width * width
    words = (depth * width + 63) // 64
    score, index = torch.zeros(batch, 1), torch.full((batch, 1), -1, dtype=INT)
    anc = torch.zeros(batch, 1, words, dtype=LONG)
    hist = (
        torch.full((batch, entries), -INF),
        torch.zeros(batch, entries, dtype=LONG),
        torch.full((batch, entries), -1, dtype=INT),
    )
    paths = [(root,) for root in roots]  # of the beam rows, flattened as the drafter's output is
    slots: list[list[int]] = [[] for _ in roots]  # the draft cache slots each beam row must see
    for level in range(depth):
        rows = [toy_model(path, width) for path in paths]
        logp = torch.tensor([r[0] for r in rows]).view(batch, -1, width)
        ids = torch.tensor([r[1] for r in rows]).view(batch, -1, width)
        tokens, row_index, score, index, anc = tree_expand.tree_expand(
            logp, ids, score, index, anc, level, width, *hist
        )
        pairs = list(zip(row_index.flatten().tolist(), tokens.flatten().tolist(), strict=True))
        slots = [[*slots[row], level * width + i % width] for i, (row, _) in enumerate(pairs)]
        paths = [(*paths[row], token) for row, token in pairs]
        seen = tree_mask.unpack_words(anc, 64 * words).flatten(0, 1)
        assert [row.nonzero().flatten().tolist() for row in seen] == slots
    return op.tree_rerank(torch.tensor(roots), *hist, nodes), paths, score


@pytest.mark.parametrize(
    ("depth", "width", "total"), [(1, 8, 8), (4, 8, 30), (5, 10, 48), (6, 10, 127), (12, 5, 127), (5, 1, 5)]
)
def test_several_levels_and_rerank_give_the_eagle2_tree(depth, width, total):
    roots = [3, 17, 400]
    (tokens, parent, _, levels, count), beam, score = draft_with_ops(roots, depth, width, total + 1)
    for b, root in enumerate(roots):
        paths, frontier = eagle2(root, depth, width, total)
        assert beam[b * width : (b + 1) * width] == [path for _, path in frontier]
        assert score[b].tolist() == [s for s, _ in frontier]
        got: list[tuple[int, ...]] = []
        for i in range(int(count[b])):
            up = int(parent[b, i])
            got.append((*(got[up] if up >= 0 else ()), int(tokens[b, i])))
        assert got == [(root,), *paths]
        assert levels[b, : len(got)].tolist() == [len(path) - 1 for path in got]


def test_empty_batch():
    shapes = [tuple(t.shape) for t in op.tree_rerank(*history(0, 20), 65)]
    assert shapes == [(0, 65), (0, 65), (0, 65, 2), (0, 65), (0,)]


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, torch.zeros(1, dtype=INT), "root_token must be int64, got int32"),
        (1, torch.zeros(1, 3, dtype=torch.float16), "hist_score must be float32, got float16"),
        (2, torch.zeros(1, 3, dtype=INT), "hist_id must be int64, got int32"),
        (3, torch.zeros(1, 3, dtype=LONG), "hist_parent must be int32, got int64"),
        (0, torch.zeros(1, 1, dtype=LONG), "root_token must have 1 dimensions"),
        (1, torch.zeros(3), "hist_score must have 2 dimensions"),
        (1, torch.zeros(2, 3), r"dimension 0 of hist_score must be 1 \(B\)"),
        (2, torch.zeros(1, 4, dtype=LONG), r"dimension 1 of hist_id must be 3 \(C\)"),
        (3, torch.zeros(1, 4, dtype=INT), r"dimension 1 of hist_parent must be 3 \(C\)"),
        (1, torch.zeros(1, 6)[:, ::2], "hist_score must be contiguous"),
        (4, 0, r"num_nodes must lie in \[1, 128\], got 0"),
        (4, 129, r"num_nodes must lie in \[1, 128\], got 129"),
        (3, torch.tensor([[-1, 1, 0]], dtype=INT), r"hist_parent\[0\]\[1\] must lie in \[-1, 1\), got 1"),
        (3, torch.tensor([[-1, -2, 0]], dtype=INT), r"hist_parent\[0\]\[1\] must lie in \[-1, 1\), got -2"),
        (3, torch.tensor([[0, -1, 0]], dtype=INT), r"hist_parent\[0\]\[0\] must lie in \[-1, 0\), got 0"),
    ],
)
def test_bad_arguments_raise(at, value, message):
    arguments = [*history(1, 3), 4]
    arguments[at] = value
    with pytest.raises(RuntimeError, match="tree_rerank: .*" + message):
        op.tree_rerank(*arguments)


def test_opcheck_and_compile():
    arguments = history(2, 100)
    torch.library.opcheck(torch.ops.sparrow.tree_rerank, (*arguments, 65))
    assert_same(compiled(op.tree_rerank, *arguments, 65), op.reference(*arguments, 65))
