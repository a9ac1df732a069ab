import pytest
import torch

from sparrow_ext.ops import repetition_penalty as op
from tests.ops.checks import strided
from tests.ops.test_repetition_penalty import case


@pytest.mark.parametrize(
    ("nodes", "vocab"), [(1, 1), (2, 7), (16, 65), (17, 300), (63, 64), (64, 65), (65, 300), (127, 33), (128, 300)]
)
def test_equals_reference(sim, nodes, vocab):
    logits, *rest = case(3, nodes, vocab)
    want, got = logits.clone(), logits.clone()
    op.reference(want, *rest)
    sim.ops.repetition_penalty(got, *rest)
    assert torch.equal(got, want)
    alone = logits[1:2].clone()
    sim.ops.repetition_penalty(alone, *(t[1:2] for t in rest))
    assert torch.equal(alone[0], got[1])


def test_several_blocks_a_row(sim):
    logits, *rest = case(2, 3, 8192 * 2 + 5)
    want, got = logits.clone(), logits.clone()
    op.repetition_penalty(want, *rest)
    sim.ops.repetition_penalty(got, *rest)
    assert torch.equal(got, want)


def test_a_repeated_token_is_penalised_once_and_bits_beyond_the_nodes_are_ignored(sim):
    logits = torch.tensor([[[2.0, 2.0, -2.0, 0.0], [2.0, 2.0, -2.0, 5.0], [2.0, 2.0, -2.0, 5.0]]])
    anc = torch.tensor([[[0b001 - 8], [0b011], [-1]]])
    seen = torch.tensor([[True, False, False, False]])
    sim.ops.repetition_penalty(logits, torch.tensor([[1, 2, 1]]), anc, seen, torch.tensor([2.0]))
    assert logits.tolist() == [[[1.0, 1.0, -2.0, 0.0], [1.0, 1.0, -4.0, 5.0], [1.0, 1.0, -4.0, 5.0]]]


def test_bad_tokens_are_ignored(sim):
    logits, tokens, anc, seen, penalty = case(1, 5, 20)
    tokens[0, 1:4] = torch.tensor([-1, 20, 2**62])
    want, got = logits.clone(), logits.clone()
    anc_without = anc & ~0b01110
    op.reference(want, torch.where((tokens < 0) | (tokens > 19), 0, tokens), anc_without, seen, penalty)
    sim.ops.repetition_penalty(got, tokens, anc, seen, penalty)
    assert torch.equal(got, want)


def test_strided_rows_and_their_surroundings(sim):
    logits, *rest = case(3, 5, 100)
    want, view = logits.clone(), strided(logits)
    op.reference(want, *rest)
    sim.ops.repetition_penalty(view, *rest)
    assert torch.equal(view, want)
    assert int(view._base.isnan().sum()) == view._base.numel() - logits.numel()  # the poison around the rows is there


def test_special_values(sim):
    logits = torch.tensor([[[float("nan"), float("inf"), -float("inf"), -0.0, 0.0]]])
    seen, one = torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.int64)
    sim.ops.repetition_penalty(logits, torch.zeros(1, 1, dtype=torch.int64), one, seen, torch.tensor([1.5]))
    assert logits[0, 0].isnan().tolist() == [True, False, False, False, False]
    assert logits[0, 0, 1:].tolist() == [float("inf"), -float("inf"), 0.0, 0.0]


def test_empty_and_bad_arguments(simulator):
    for batch, nodes, vocab in ((0, 3, 5), (2, 0, 5), (2, 3, 0)):
        anc = torch.zeros(batch, nodes, 1 if nodes else 0, dtype=torch.int64)
        rest = (torch.zeros(batch, nodes, dtype=torch.int64), anc, torch.zeros(batch, vocab, dtype=torch.bool))
        simulator.ops.repetition_penalty(torch.zeros(batch, nodes, vocab), *rest, torch.ones(batch))
    logits, *rest = case(1, 2, 9)
    with pytest.raises(RuntimeError, match="repetition_penalty: logits must be float32"):
        simulator.ops.repetition_penalty(logits.half(), *rest)
