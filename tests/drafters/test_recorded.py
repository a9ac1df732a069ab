"""A recorder changes no token, and its trees are those that were verified, whatever drafts."""

import pytest
import torch

import sparrow
import sparrow_ext
from sparrow.decoding.generate import generate
from sparrow.drafters.recorded import Recorder, _kept, walk
from sparrow.drafters.specvlm import SpecVLM
from sparrow.targets.adapter import Target
from tests.pairs import miniature_pair
from tests.videos import sample_inputs

OPTIONS = {"max_new_tokens": 30, "eos_token_id": None}
SAMPLED = {"do_sample": True, "temperature": 1.3, "seed": 3}


@pytest.fixture(scope="module")
def own():
    model, _, drafter = miniature_pair()
    return model, drafter, {"input_ids": torch.arange(5, 12)[None]}


@pytest.mark.parametrize("tree", ["own", "6-3-2", "auto"])
@pytest.mark.parametrize("sampled", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_recorded_is_as_it_would_be(own, tree, sampled):
    model, drafter, inputs = own
    recorder = Recorder(drafter)
    out = generate(model, recorder, **inputs, **OPTIONS, **sampled, tree=tree, on_round=recorder.on_round)
    plain = generate(model, None, **inputs, **OPTIONS, **sampled)
    assert torch.equal(out.sequences, plain.sequences)
    rounds = recorder.rounds()
    assert [token for r in rounds for token in r.emitted] == out.sequences[0, 8:].tolist()
    assert [r.accepted for r in rounds] == out.stats.accepted
    assert tree == "auto" or any(r.path for r in rounds)  # auto may find, by its clock, that nothing pays
    for r in rounds:
        assert r.parent[0] == -1 and all(-1 < up < at for at, up in enumerate(r.parent) if at)
        assert [r.tokens[at] for at in r.path] == r.emitted[: len(r.path)]
    if tree == "6-3-2":
        assert all(len(r.tokens) == 7 for r in rounds)


def test_a_drafter_without_scores(tiny):
    """SpecVLM: trees without probabilities. A clip for it to prune."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl", frames=8)
    recorder = Recorder(SpecVLM())
    out = generate(model, recorder, **inputs, **OPTIONS, on_round=recorder.on_round)
    assert torch.equal(out.sequences, sparrow.generate(model, SpecVLM(), **inputs, **OPTIONS).sequences)
    assert {len(r.tokens) > 1 for r in recorder.rounds()} == {True}
    assert len(recorder.rounds()) == out.stats.rounds


def test_it_is_never_captured(own):
    """A graph that is replayed would draft unseen."""
    model, drafter, _ = own
    inner, shape = drafter.in_loop(Target(model), None)
    recorded, same = Recorder(drafter).in_loop(Target(model), None)
    assert inner.identity() is not None and recorded.identity() is None and same == shape


def test_plain_decoding_is_all_roots(own):
    model, _, inputs = own
    recorder = Recorder(None)
    generate(model, recorder, **inputs, **OPTIONS, on_round=recorder.on_round)
    assert all(r.parent == [-1] and r.path == [] and r.accepted == 0 for r in recorder.rounds())


def test_probabilities_are_in_the_order_of_the_nodes():
    """tree_rerank keeps the best candidates and numbers them in the order in which they were drafted."""
    scores = torch.tensor([-2.0, -0.1, -torch.inf, -0.5, float("nan"), -0.4, -0.5])
    parents = torch.full((1, 7), -1, dtype=torch.int32)
    tokens = torch.arange(10, 17)[None]
    kept = sparrow_ext.tree_rerank(torch.tensor([5]), scores[None].nan_to_num(-torch.inf), tokens, parents, num_nodes=5)
    by_token = dict(zip(tokens[0].tolist(), scores.exp().tolist(), strict=True))
    assert _kept(scores, 4) == pytest.approx([by_token[t] for t in kept[0][0, 1:].tolist()])


def test_the_walk_goes_from_parent_to_child():
    """A token that stands in several places is the one below the last; of equal siblings the first."""
    assert walk([5, 7, 8, 7, 7], [-1, 0, 0, 2, 2], [8, 7]) == [2, 3]
    assert walk([5, 7], [-1, 0], []) == []
