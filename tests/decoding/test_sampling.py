"""Sampling is lossless: the same tokens as plain decoding for a seed, and the target's distribution over seeds."""

import itertools

import pytest
import torch

import sparrow
import sparrow_ext
from sparrow.sampling import Sampler
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig
from tests.decoding.scripted import ScriptedDrafter
from tests.videos import sample_inputs

RULES = {
    "temperature": {"temperature": 0.7, "top_k": 0},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 0.9, "top_k": 0, "top_p": 0.8},
    "penalty": {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.2},
    "other processor": {"temperature": 0.8, "top_k": 20, "min_p": 0.05},
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_same_tokens_as_plain_decoding(tiny, family, name):
    model, inputs = tiny(family), sample_inputs(family)
    options = {"do_sample": True, "max_new_tokens": 30, "eos_token_id": None, **RULES[name]}
    outputs = []
    for seed in (0, 7, 2**61):
        want = sparrow.generate(model, None, **inputs, **options, seed=seed).sequences
        outputs.append(want)
        drafters = [
            (sparrow.SparrowDrafter.from_target(Target(model)), "30-4-8"),
            (sparrow.SparrowDrafter.from_target(Target(model), seed=5), "4-4-1"),
        ]
        drafters += [(ScriptedDrafter(want[0], lambda r: r % 6), "15-5-3")]
        for drafter, tree in drafters:
            out = sparrow.generate(model, drafter, **inputs, **options, seed=seed, tree=TreeConfig.parse(tree))
            assert torch.equal(out.sequences, want)
        assert max(out.stats.accepted) == 5
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])


@pytest.mark.parametrize("ignored", [None, 0, 7, "prompt", "more"])
def test_penalties_that_ignore_tokens(tiny, ignored, monkeypatch):
    """transformers hides a prompt's first tokens from a penalty: those of the padding, or as many as one asks for. The
    operator does the same, unless tokens to come are hidden as well.
    """
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    p = inputs["input_ids"].shape[1]
    length = {"prompt": p, "more": p + 5}.get(ignored, ignored)
    options = {"max_new_tokens": 20, "eos_token_id": None, "do_sample": False}
    if ignored is None:
        options["repetition_penalty"] = 1.7
    else:
        penalty = RepetitionPenaltyLogitsProcessor(1.7, prompt_ignore_length=length)
        options["logits_processor"] = LogitsProcessorList([penalty])
    want, walks = model.generate(**inputs, **options), []
    walk = Sampler._walk
    monkeypatch.setattr(Sampler, "_walk", lambda self, *args: walks.append(1) or walk(self, *args))
    drafter = ScriptedDrafter(want[0], lambda r: r % 6)
    out = sparrow.generate(model, drafter, **inputs, **options, tree=TreeConfig(15, 5, 3))
    assert torch.equal(out.sequences, want)
    assert bool(walks) == (ignored == "more")


def test_seed_comes_from_torch_where_none_is_given(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(
            sparrow.generate(model, None, **inputs, do_sample=True, max_new_tokens=12, eos_token_id=None).sequences
        )
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def target_probs(prefix: tuple[int, ...]) -> torch.Tensor:
    """A made-up target over 3 tokens: a distribution for every prefix."""
    g = torch.Generator().manual_seed(sum(3**i * (t + 1) for i, t in enumerate(prefix)) + 1)
    return torch.rand(3, generator=g, dtype=torch.float64).add(0.1).softmax(0)


# Node 0 is the root; duplicates among siblings (1 and 2, 4 and 5) and a second root (6) that must never be accepted.
TREE_TOKENS, TREE_PARENT = [0, 1, 1, 2, 0, 0, 1, 2], [-1, 0, 0, 0, 1, 1, -1, 2]


def prefix_of(node: int) -> tuple[int, ...]:
    return () if node <= 0 else (*prefix_of(TREE_PARENT[node]), TREE_TOKENS[node])


def test_walk_is_exact_by_enumeration():
    """All ways the target can choose at the nodes, weighted: three tokens follow the target's joint distribution."""
    nodes, got = len(TREE_TOKENS), {}
    tokens, parent = torch.tensor([TREE_TOKENS]), torch.tensor([TREE_PARENT], dtype=torch.int32)
    for choice in itertools.product(range(3), repeat=nodes):
        weight = torch.stack([target_probs(prefix_of(i))[c] for i, c in enumerate(choice)]).prod().item()
        n, _, out = sparrow_ext.tree_accept(tokens, parent, torch.tensor([choice]), None, max_path=3)
        drawn = tuple(out[0, : int(n)].tolist())
        for rest in itertools.product(range(3), repeat=3 - len(drawn)):  # plain decoding fills up to three tokens
            p, sequence = weight, drawn
            for token in rest:
                p *= target_probs(sequence)[token].item()
                sequence = (*sequence, token)
            got[sequence] = got.get(sequence, 0.0) + p
    for sequence in itertools.product(range(3), repeat=3):
        want = torch.stack([target_probs(sequence[:i])[t] for i, t in enumerate(sequence)]).prod().item()
        assert got[sequence] == pytest.approx(want, abs=1e-12)


def test_distribution_over_seeds(tiny):
    """Chi-square over the two tokens after the first, false-alarm rate 1e-4 (fixed seeds: passes always or never)."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl", videos=0)
    options = {"do_sample": True, "temperature": 0.9, "top_k": 3, "eos_token_id": None}
    drafter, runs = sparrow.SparrowDrafter.from_target(Target(model)), 600
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(runs):
        out = sparrow.generate(
            model, drafter, **inputs, **options, max_new_tokens=2, seed=seed, tree=TreeConfig(6, 2, 3)
        )
        sequence = tuple(out.sequences[0, -2:].tolist())
        counts[sequence] = counts.get(sequence, 0) + 1
    expected = joint(model, inputs["input_ids"], 0.9, 3)
    assert set(counts) <= set(expected)
    statistic = sum((counts.get(s, 0) - runs * p) ** 2 / (runs * p) for s, p in expected.items())
    freedom = torch.tensor(len(expected) - 1.0)
    p_value = 1 - torch.special.gammainc(freedom / 2, torch.tensor(statistic / 2)).item()
    assert p_value > 1e-4, (statistic, counts, expected)


def joint(model, prompt, temperature, top_k):
    """Exact probabilities of the next two tokens."""
    result = {}
    for first, p in next_tokens(model, prompt, temperature, top_k).items():
        longer = torch.cat([prompt, torch.tensor([[first]])], dim=1)
        result |= {(first, second): p * q for second, q in next_tokens(model, longer, temperature, top_k).items()}
    return result


def next_tokens(model, ids, temperature, top_k):
    with torch.no_grad():
        values, tokens = (model(input_ids=ids).logits[0, -1].double() / temperature).topk(top_k)
    return dict(zip(tokens.tolist(), values.softmax(0).tolist(), strict=True))
