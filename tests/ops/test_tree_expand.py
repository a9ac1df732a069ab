import pytest
import torch

from sparrow_ext.ops import tree_expand as op
from tests.ops.checks import available_isas, compiled, cpu_isa, poison

INT, LONG, INF = torch.int32, torch.int64, torch.inf


def case(batch, k, level, beam, *, words=2, seed=0, special=False, extra=3):
    """The arguments of one level; `special` puts ties, NaN and infinities in."""
    generator = torch.Generator().manual_seed(seed)
    rows, slot = 1 if level == 0 else beam, op.first_slot(k, level, beam)
    logp = -torch.rand(batch, rows, k, generator=generator) * 10
    score = -torch.rand(batch, rows, generator=generator) * 10
    if special:
        logp = logp.round()  # ties
        odd = torch.tensor([torch.nan, -INF, INF, 0.0, 3.0])
        pick = torch.randint(0, 15, logp.shape, generator=generator)
        logp = torch.where(pick < 5, odd[pick.clamp(max=4)], logp)
        pick = torch.randint(0, 12, score.shape, generator=generator)
        score = torch.where(pick < 2, odd[pick.clamp(max=1)], score.round())
    index = torch.randint(-1, max(slot, 1), (batch, rows), generator=generator, dtype=INT) if level else None
    anc = torch.randint(-(2**63), 2**63 - 1, (batch, rows, words), generator=generator) if level else None
    width = slot + rows * k + extra
    return [
        logp,
        torch.randint(0, 1 << 40, logp.shape, generator=generator),
        score if level else torch.zeros(batch, 1),
        torch.full((batch, 1), -1, dtype=INT) if index is None else index,
        torch.zeros(batch, 1, words, dtype=LONG) if anc is None else anc,
        level,
        beam,
        poison(torch.empty(batch, width)),
        poison(torch.empty(batch, width, dtype=LONG)),
        poison(torch.empty(batch, width, dtype=INT)),
    ]


def clones(arguments):
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]


def assert_same(got, want):
    for ours, expected in zip(got, want, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


SHAPES = [
    (1, 0, 1),
    (1, 3, 1),
    (8, 0, 8),
    (8, 3, 8),
    (10, 5, 10),
    (32, 1, 1),
    (32, 0, 32),
    (32, 3, 32),
    (5, 2, 3),
    (9, 63, 2),
]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("k", "level", "beam"), SHAPES)
def test_equals_reference(k, level, beam, special, isa):
    for seed in range(2):
        arguments = case(3, k, level, beam, seed=seed, special=special)
        wanted = clones(arguments)
        want = op.reference(*wanted)
        with cpu_isa(isa):
            got = op.tree_expand(*arguments)
        assert_same(got, want)
        assert_same(arguments[7:], wanted[7:])  # the poison of unwritten slots included


@pytest.mark.parametrize(("k", "level", "beam"), SHAPES)
def test_eager_equals_ours_without_ties(k, level, beam):
    arguments = case(2, k, level, beam)
    other = clones(arguments)
    assert_same(op.eager(*other), op.tree_expand(*arguments))
    assert_same(other[7:], arguments[7:])


@pytest.mark.parametrize(("words", "level", "beam"), [(1, 7, 8), (2, 8, 8), (2, 15, 8), (1, 0, 8)])
def test_own_bit_reaches_the_last_of_each_word(words, level, beam):
    arguments = case(1, 8, level, beam, words=words)
    arguments[4].zero_()
    anc = op.tree_expand(*arguments)[4]
    for rank in range(beam):
        own = level * beam + rank
        assert [(int(anc[0, rank, w]) >> j) & 1 for w in range(words) for j in range(64)] == [
            int(64 * w + j == own) for w in range(words) for j in range(64)
        ]


def test_ties_go_to_the_lower_candidate_and_missing_ones_stay_minus_infinity():
    arguments = case(1, 4, 0, 4)
    arguments[0][0, 0] = torch.tensor([torch.nan, -2.0, -INF, -2.0])
    tokens, _, score, index, _ = op.tree_expand(*arguments)
    assert index.tolist() == [[1, 3, 0, 2]] and score.tolist() == [[-2.0, -2.0, -INF, -INF]]
    assert torch.equal(tokens[0], arguments[1][0, 0, [1, 3, 0, 2]])


def test_a_child_never_scores_above_its_parent():
    arguments = case(1, 4, 1, 2)
    arguments[0][:] = 1e-3  # a log-probability rounded above zero
    arguments[2][0] = torch.tensor([-1.0, -2.0])
    assert op.tree_expand(*arguments)[2].tolist() == [[-1.0, -1.0]]


def test_rows_are_bit_equal_to_batch_of_one():
    arguments = case(3, 8, 3, 8, special=True)
    alone = clones(arguments)
    together = op.tree_expand(*arguments)
    for b in range(3):
        one = [a[b : b + 1].clone() if isinstance(a, torch.Tensor) else a for a in alone]
        got = op.tree_expand(*one)
        want = [t[b : b + 1] for t in together]
        want[1] = want[1] - b * 8  # rows of the flattened output are counted across the batch
        assert_same(got, want)
        assert_same(one[7:], [a[b : b + 1] for a in arguments[7:]])


def test_strided_candidates():
    arguments = case(2, 8, 2, 4)
    want = op.reference(*clones(arguments))
    wide = torch.full((2, 9, 11), torch.nan)
    wide[:, 1::2, :8] = arguments[0]
    arguments[0] = wide[:, 1::2, :8]
    wide_ids = torch.zeros(3, 4, 20, dtype=LONG)
    wide_ids[1:, :, 5:13] = arguments[1]
    arguments[1] = wide_ids[1:, :, 5:13]
    assert_same(op.tree_expand(*arguments), want)


def test_empty_batch():
    shapes = [tuple(t.shape) for t in op.tree_expand(*case(0, 4, 1, 2))]
    assert shapes == [(0, 2), (0, 2), (0, 2), (0, 2), (0, 2, 2)]


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, torch.zeros(1, 2, 4, dtype=torch.bfloat16), "logp must be float32, got bfloat16"),
        (1, torch.zeros(1, 2, 4, dtype=INT), "ids must be int64, got int32"),
        (2, torch.zeros(1, 2, dtype=torch.float64), "beam_score must be float32, got float64"),
        (3, torch.zeros(1, 2, dtype=LONG), "beam_index must be int32, got int64"),
        (4, torch.zeros(1, 2, 2, dtype=INT), "beam_anc must be int64, got int32"),
        (7, torch.zeros(1, 20, dtype=torch.float16), "hist_score must be float32, got float16"),
        (8, torch.zeros(1, 20, dtype=INT), "hist_id must be int64, got int32"),
        (9, torch.zeros(1, 20, dtype=LONG), "hist_parent must be int32, got int64"),
        (0, torch.zeros(2, 4), "logp must have 3 dimensions"),
        (0, torch.zeros(1, 3, 4), r"logp must have 2 rows \(1 at level 0, then beam\), got shape \[1, 3, 4\]"),
        (1, torch.zeros(1, 2, 3, dtype=LONG), r"dimension 2 of ids must be 4 \(k\)"),
        (2, torch.zeros(1, 3), r"dimension 1 of beam_score must be 2 \(T\)"),
        (3, torch.zeros(2, 2, dtype=INT), r"dimension 0 of beam_index must be 1 \(B\)"),
        (4, torch.zeros(1, 3, 2, dtype=LONG), r"dimension 1 of beam_anc must be 2 \(T\)"),
        (4, torch.zeros(1, 2, 3, dtype=LONG), "beam_anc must have at most 2 words"),
        (4, torch.zeros(1, 2, 0, dtype=LONG), "must fit into the 0 words of beam_anc"),
        (7, torch.zeros(1, 19), r"hist_score must have at least 20 entries \(C\), got shape \[1, 19\]"),
        (8, torch.zeros(1, 21, dtype=LONG), r"dimension 1 of hist_id must be 20 \(C\)"),
        (9, torch.zeros(1, 40, dtype=INT)[:, ::2], "hist_parent must be contiguous"),
        (0, torch.zeros(1, 2, 8)[..., ::2], "logp must be dense in its last dimension"),
        (5, -1, r"level must lie in \[0, 2147483647\], got -1"),
        (5, 64, "level 64 and beam 2 must fit into the 2 words"),
        (3, torch.tensor([[0, 12]], dtype=INT), r"beam_index\[0\]\[1\] must lie in \[-1, 12\), got 12"),
        (3, torch.tensor([[-2, 0]], dtype=INT), r"beam_index\[0\]\[0\] must lie in \[-1, 12\), got -2"),
    ],
)
def test_bad_arguments_raise_and_change_nothing(at, value, message):
    arguments = case(1, 4, 2, 2, extra=0)
    arguments[at] = value
    before = clones(arguments)
    with pytest.raises(RuntimeError, match="tree_expand: .*" + message):
        op.tree_expand(*arguments)
    assert_same(arguments[7:], before[7:])


def test_beam_wider_than_the_candidates_raises():
    arguments = case(1, 4, 0, 5)
    with pytest.raises(RuntimeError, match=r"beam must lie in \[1, T k\] = \[1, 4\], got 5"):
        op.tree_expand(*arguments)


def test_opcheck_and_compile():
    arguments = case(2, 8, 2, 8)
    torch.library.opcheck(torch.ops.sparrow.tree_expand, tuple(clones(arguments)))
    wanted = clones(arguments)
    want = op.reference(*wanted)
    assert_same(compiled(op.tree_expand, *arguments), want)
    assert_same(arguments[7:], wanted[7:])
