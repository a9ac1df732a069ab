import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from sparrow_ext.ops import repetition_penalty as op
from sparrow_ext.ops.tree_mask import tree_mask, unpack_words
from tests.ops.checks import available_isas, compiled, cpu_isa, random_tree, strided


def case(batch: int, nodes: int, vocab: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """logits, tokens, anc, seen, penalty; half the tokens repeat an earlier node's, some are in the bitmap."""
    g = torch.Generator().manual_seed(1000 * seed + 10 * nodes + batch)
    logits = torch.randn(batch, nodes, vocab, generator=g) * 4
    tokens = torch.randint(0, max(vocab // 2, 1), (batch, nodes), generator=g)
    parent = torch.stack([random_tree(nodes, g, forest=b == 1) for b in range(batch)])
    seen = torch.rand(batch, vocab, generator=g) < 0.2
    return logits, tokens, tree_mask(parent)[0], seen, torch.rand(batch, generator=g) + 0.7


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("vocab", [1, 7, 8, 65, 300])
@pytest.mark.parametrize("nodes", [1, 2, 63, 64, 65, 128])
def test_equals_reference(nodes, vocab, isa):
    logits, *rest = case(3, nodes, vocab)
    want, eager, got = logits.clone(), logits.clone(), logits.clone()
    op.reference(want, *rest)
    op.eager(eager, *rest)
    with cpu_isa(isa):
        op.repetition_penalty(got, *rest)
    assert torch.equal(got, want) and torch.equal(eager, want)


def test_equals_transformers_on_every_path():
    logits, tokens, anc, seen, penalty = case(2, 20, 50)
    got = logits.clone()
    op.repetition_penalty(got, tokens, anc, seen, penalty)
    visible = unpack_words(anc, 20)
    for b in range(2):
        processor = RepetitionPenaltyLogitsProcessor(penalty=float(penalty[b]))
        for n in range(20):
            ids = torch.cat([seen[b].nonzero().flatten(), tokens[b, visible[b, n]]])[None]
            assert torch.equal(got[b, n], processor(ids, logits[b, n][None])[0])


def test_a_repeated_token_is_penalised_once_and_nothing_else():
    logits = torch.tensor([[[2.0, 2.0, -2.0, 0.0], [2.0, 2.0, -2.0, 5.0], [2.0, 2.0, -2.0, 5.0]]])
    tokens = torch.tensor([[1, 2, 1]])
    anc = torch.tensor([[[0b001], [0b011], [0b111]]])
    seen = torch.tensor([[True, False, False, False]])
    op.repetition_penalty(logits, tokens, anc, seen, torch.tensor([2.0]))
    assert logits.tolist() == [[[1.0, 1.0, -2.0, 0.0], [1.0, 1.0, -4.0, 5.0], [1.0, 1.0, -4.0, 5.0]]]


def test_bits_beyond_the_nodes_are_ignored():
    logits, tokens, _, seen, penalty = case(1, 2, 9)
    want, got = logits.clone(), logits.clone()
    op.repetition_penalty(want, tokens, torch.tensor([[[1], [3]]]), seen, penalty)
    op.repetition_penalty(got, tokens, torch.tensor([[[-3], [-1]]]), seen, penalty)  # all bits but bit 1; all bits
    assert torch.equal(got, want)


def test_special_values():
    logits = torch.tensor([[[float("nan"), float("inf"), -float("inf"), -0.0, 0.0]]])
    seen, one = torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.int64)
    op.repetition_penalty(logits, torch.zeros(1, 1, dtype=torch.int64), one, seen, torch.tensor([1.5]))
    assert logits[0, 0].isnan().tolist() == [True, False, False, False, False]
    assert logits[0, 0, 1:].tolist() == [float("inf"), -float("inf"), 0.0, 0.0]


def test_rows_do_not_depend_on_the_batch():
    logits, *rest = case(3, 33, 300)
    got = logits.clone()
    op.repetition_penalty(got, *rest)
    for b in range(3):
        alone = logits[b : b + 1].clone()
        op.repetition_penalty(alone, *(t[b : b + 1] for t in rest))
        assert torch.equal(alone[0], got[b])


def test_strided_rows_and_their_surroundings():
    logits, *rest = case(3, 5, 100)
    want, view = logits.clone(), strided(logits)
    op.reference(want, *rest)
    base = view._base
    op.repetition_penalty(view, *rest)
    assert torch.equal(view, want)
    assert int(base.isnan().sum()) == base.numel() - logits.numel()  # the poison around the rows is untouched
    swapped = logits.transpose(0, 1).contiguous().transpose(0, 1)
    op.repetition_penalty(swapped, *rest)
    assert torch.equal(swapped, want)


@pytest.mark.parametrize(("batch", "nodes", "vocab"), [(0, 3, 8), (2, 0, 8)])
def test_empty(batch, nodes, vocab):
    op.repetition_penalty(
        torch.empty(batch, nodes, vocab),
        torch.empty(batch, nodes, dtype=torch.int64),
        torch.empty(batch, nodes, (nodes + 63) // 64, dtype=torch.int64),
        torch.zeros(batch, vocab, dtype=torch.bool),
        torch.ones(batch),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 8).bfloat16()}, "repetition_penalty: logits must be float32, got bfloat16"),
        ({"logits": torch.zeros(3, 8)}, r"logits must have 3 dimensions, got shape \[3, 8\]"),
        ({"logits": torch.zeros(2, 8, 3).transpose(1, 2)}, "logits must be dense in its last dimension"),
        ({"logits": torch.zeros(1, 3, 8).expand(2, 3, 8)}, "logits is written: it must not hold an element twice"),
        ({"tokens": torch.zeros(2, 3, dtype=torch.int32)}, "tokens must be int64, got int32"),
        ({"tokens": torch.zeros(2, 4, dtype=torch.int64)}, r"dimension 1 of tokens must be 3 \(N\)"),
        ({"tokens": torch.tensor([[0, 1, 2], [0, 8, 0]])}, r"tokens\[1\]\[1\] must lie in \[0, 8\), got 8"),
        ({"tokens": torch.tensor([[0, -1, 2], [0, 1, 0]])}, r"tokens\[0\]\[1\] must lie in \[0, 8\), got -1"),
        ({"anc": torch.ones(2, 3, 2, dtype=torch.int64)}, "dimension 2 of anc must be 1"),
        ({"seen": torch.zeros(2, 9, dtype=torch.bool)}, r"dimension 1 of seen must be 8 \(V\)"),
        ({"seen": torch.zeros(2, 8, dtype=torch.uint8)}, "seen must be bool, got uint8"),
        ({"seen": torch.zeros(8, 2, dtype=torch.bool).t()}, "seen must be contiguous"),
        ({"penalty": torch.tensor([1.0, 0.0])}, r"penalty\[1\] must be positive and finite, got 0"),
        ({"penalty": torch.tensor([float("nan"), 1.0])}, r"penalty\[0\] must be positive and finite"),
    ],
)
def test_bad_arguments_raise_and_change_nothing(change, message):
    arguments = {
        "logits": torch.ones(2, 3, 8),
        "tokens": torch.zeros(2, 3, dtype=torch.int64),
        "anc": torch.ones(2, 3, 1, dtype=torch.int64),
        "seen": torch.ones(2, 8, dtype=torch.bool),
        "penalty": torch.full((2,), 2.0),
    } | change
    before = arguments["logits"].clone()
    with pytest.raises(RuntimeError, match=message):
        op.repetition_penalty(**arguments)
    assert torch.equal(arguments["logits"], before)


def test_too_many_nodes_raise():
    with pytest.raises(RuntimeError, match="at most 128 nodes"):
        logits, *rest = case(1, 128, 8)
        op.repetition_penalty(logits.repeat(1, 2, 1), *rest)


def test_opcheck_and_compile():
    logits, *rest = case(2, 5, 40)
    torch.library.opcheck(torch.ops.sparrow.repetition_penalty, (logits.clone(), *rest))
    want, got = logits.clone(), logits.clone()
    op.repetition_penalty(want, *rest)
    compiled(op.repetition_penalty, got, *rest)
    assert torch.equal(got, want)
