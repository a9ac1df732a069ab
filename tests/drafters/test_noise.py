"""Drafts drawn with the target's noise: which noise, at which level, and that no token of the output depends on it."""

import pytest
import torch

import sparrow
import sparrow.video
import sparrow_ext
from sparrow.decoding import runner
from sparrow.drafters.specvlm import SpecVLM
from sparrow.drafters.text import TextDrafter
from sparrow.sampling import COLDEST, Noise, Sampler, SamplingRules
from sparrow.targets.adapter import Target
from tests.decoding.recorder import Emulated
from tests.decoding.talk import frames_of
from tests.decoding.test_session import session_of
from tests.drafters.visual_cases import RIVALS, random_drafter
from tests.videos import FAMILIES, sample_inputs

# So hot that logits do not matter: whoever draws with the same noise at the same place draws the same token.
NOISE_ONLY = {"do_sample": True, "temperature": 1e6, "top_k": 0, "top_p": 1.0, "eos_token_id": None}
WARM = NOISE_ONLY | {"temperature": 1.0}


@pytest.mark.parametrize("tree", ["4-4-1", "30-4-3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_level_has_the_noise_of_its_own_draw(tiny, family, tree):
    model, inputs = tiny(family), sample_inputs(family)
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    out = sparrow.generate(model, drafter, **inputs, **NOISE_ONLY, max_new_tokens=31, tree=tree, seed=3)
    assert set(out.stats.accepted) == {4}


@pytest.mark.parametrize("rival", RIVALS)
def test_the_rivals_too(tiny, rival):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = random_drafter(Target(model), rival)
    out = sparrow.generate(model, drafter, **inputs, **NOISE_ONLY, max_new_tokens=26, tree="30-4-3", seed=3)
    assert set(out.stats.accepted) == {4}


@pytest.mark.parametrize("family", FAMILIES)
def test_specvlm_accepts_all_when_nothing_is_pruned(tiny, family):
    """Drafter and target have the same logits, so they draw the same tokens, at an ordinary temperature, too."""
    model, inputs = tiny(family), sample_inputs(family)
    out = sparrow.generate(model, SpecVLM(keep=1.0), **inputs, **WARM, max_new_tokens=1 + 6 * 6, seed=5)
    assert out.stats.accepted == [5] * 6


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sequence_of_a_batch_has_its_own(tiny, family):
    model = tiny(family)
    together = sparrow.video.together([sample_inputs(family, seed=i, text=5 + 6 * i) for i in range(3)], 2)
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    out = sparrow.generate(model, drafter, **together, **NOISE_ONLY, max_new_tokens=31, tree="30-4-3", seed=[7, -7, 9])
    assert set(out.stats.accepted) == {4}


def test_when_sequences_have_left_a_batch(tiny):
    """Those that go on keep their noise."""
    model = tiny("qwen2_5_vl")
    together = sparrow.video.together([sample_inputs("qwen2_5_vl", seed=i, text=5 + 6 * i) for i in range(3)], 2)
    drafter, options = sparrow.SparrowDrafter.from_target(Target(model)), {**together, **NOISE_ONLY, "seed": [7, -7, 9]}
    whole = sparrow.generate(model, None, **options, max_new_tokens=31).sequences
    drawn = whole[:, together["input_ids"].shape[1] :]
    end = next(token for token in drawn[0, 3:].tolist() if token not in drawn[1:])  # the first prompt's alone
    out = sparrow.generate(model, drafter, **options | {"eos_token_id": end}, max_new_tokens=31, tree="30-4-3")
    assert torch.equal(out.sequences[1:], whole[1:]) and set(out.stats.accepted) == {4}


def test_through_a_draft_vocabulary(tiny):
    """The noise is the token's, not the column's: what is in the vocabulary is accepted, and nothing else can be."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = sparrow.SparrowDrafter.from_target(Target(model), draft_vocab=True)
    vocab = torch.randperm(Target(model).vocab_size, generator=torch.Generator().manual_seed(0))[:200]
    drafter.set_draft_vocab(vocab)
    told = []
    sparrow.generate(model, drafter, **inputs, **NOISE_ONLY, max_new_tokens=40, tree="1-1-1", seed=3,
                     on_round=lambda tokens, accepted, seconds: told.append((tokens, accepted)))  # fmt: skip
    assert len(told) > 10 and {accepted for _, accepted in told} == {0, 1}
    for tokens, accepted in told:
        assert accepted == (tokens[0] in vocab.tolist())


@pytest.mark.parametrize("tree", ["own", "auto"])
def test_the_output_does_not_depend_on_it(tiny, monkeypatch, tree):
    """The same tokens without a drafter, with one that draws with the noise, and with one that does not."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    options = {**inputs, **WARM, "max_new_tokens": 40, "seed": 11}
    plain = sparrow.generate(model, None, **options).sequences
    coupled = sparrow.generate(model, drafter, **options, tree=tree)
    assert torch.equal(coupled.sequences, plain)
    monkeypatch.setattr(TextDrafter, "noise", lambda *_: None)
    apart = sparrow.generate(model, drafter, **options, tree=tree)
    assert torch.equal(apart.sequences, plain)
    if tree == "own":
        assert sum(coupled.stats.accepted) > sum(apart.stats.accepted)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_propose_is_the_noisy_top_k(tiny, dtype):
    model = tiny("qwen2_5_vl").to(dtype) if dtype != torch.float32 else tiny("qwen2_5_vl")
    target = Target(model)
    drafter = sparrow.SparrowDrafter.from_target(target)
    g = torch.Generator().manual_seed(0)
    out = torch.randn(2, 3, target.embedding.shape[1], generator=g).to(dtype)
    temperature, seed, position = torch.tensor([0.5, 2.0]), torch.tensor([3, 4]), torch.tensor([70, 80])
    logp, ids = drafter.propose(out, 4, Noise(temperature, seed, position, target.vocab_size, weight=0.5), 2)
    noise = sparrow_ext.gumbel_noise(seed, position[:, None] + 2, target.vocab_size)
    sums = drafter.logits(out).float() / temperature[:, None, None] + 0.5 * noise
    want = sums.log_softmax(-1).topk(4)
    near = 1e-5 if dtype == torch.float32 else 0.2
    assert float((want.values - logp).abs().max()) < near
    assert float((sums.log_softmax(-1).gather(-1, ids) - logp).abs().max()) < near
    model.float()


def test_greedy_decoding_has_none_and_the_coldest_is_bounded():
    prompt, length = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3])
    assert Sampler(SamplingRules(), prompt, 9).noise(length, 9) is None
    cold = Sampler(SamplingRules(temperature=1e-30, seed=4), prompt, 9).noise(length, 9)
    assert float(cold.temperature) == pytest.approx(COLDEST)
    assert torch.equal(cold.at(1), sparrow_ext.gumbel_noise(torch.tensor([4]), torch.tensor([[4]]), 9)[:, 0])


@pytest.mark.parametrize("drafter", ["text", "specvlm"])
def test_in_every_turn_of_a_session(tiny, drafter):
    """The places count on from turn to turn, in the drafter as in the target."""
    session = session_of(tiny("qwen2_5_vl"), drafter=drafter, **NOISE_ONLY | {"max_new_tokens": 16, "seed": 2})
    for text, video in (("What?", frames_of("qwen2_5_vl", 0)), ("Why is it so?", None), ("And then?", None)):
        reply = session.send(text, video, **({"tree": "30-4-3"} if drafter == "text" else {}))
        assert set(reply.stats.accepted[:-1]) == {4 if drafter == "text" else 5}


def test_in_captured_rounds(tiny, monkeypatch):
    """Each replay draws with the noise of its own place, and a later generation with its own seed's."""
    monkeypatch.setitem(runner.GRAPHS, "cpu", Emulated)
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    options = {**inputs, **NOISE_ONLY, "max_new_tokens": 41, "tree": "30-4-3"}
    for seed in (3, 4):
        out = sparrow.generate(model, drafter, **options, seed=seed)
        assert set(out.stats.accepted) == {4} and out.stats.seconds["replay"] > 0
        assert torch.equal(
            out.sequences, sparrow.generate(model, drafter, **options, seed=seed, capture=False).sequences
        )
