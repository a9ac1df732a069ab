"""SpecVLM: lossless; the tokens it keeps, the rows it has and the tree it drafts are those of slow references."""

import pytest
import torch
from transformers import DynamicCache

import sparrow
from sparrow.cli.loading import read_drafter
from sparrow.drafters.protocol import Prompt
from sparrow.drafters.specvlm import STATIC_TREE, PrunedTarget, SpecVLM, kept_tokens
from sparrow.evaluation.evaluate import Evaluation, Plan
from sparrow.evaluation.systems import SPECVLM
from sparrow.miniature.model import SETTINGS
from sparrow.targets.adapter import Target
from sparrow.targets.versions import cache_argument
from tests.pairs import miniature_pair
from tests.videos import FAMILIES, sample_inputs

NEW = 40


def video_text(target, inputs):
    """bool [P]: text; and the place behind the last visual token."""
    text = ~torch.isin(inputs["input_ids"][0], torch.tensor(sorted(target.visual_tokens())))
    return text, int((~text).nonzero()[-1]) + 1 if not text.all() else len(text)


def eager_attention(model, inputs, first):
    """What the rows from `first` on look at, [P]: transformers' own weights, summed over layers, heads and rows."""
    before = model.config.get_text_config()._attn_implementation
    with torch.no_grad():
        model.set_attn_implementation({"text_config": "eager"})
        weights = torch.stack(model(**inputs, output_attentions=True).attentions)  # [L, 1, H, P, P]
        model.set_attn_implementation({"text_config": before})
    return weights[:, 0, :, first:].sum((0, 1, 2))


class Watched(PrunedTarget):
    """Keeps the state, what the prompt's cache held, and every tree with the length it was drafted at."""

    def begin(self, prompt):
        draft = super().begin(prompt)
        self.prompt_rows, self.trees = draft.cache.get_seq_length(), []
        return draft

    def draft(self, state, shape):
        tree, self.state = super().draft(state, shape), state
        self.trees.append((state.draft.cache.get_seq_length(), int(state.position.flatten()[-1]), tree))
        return tree


@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_lossless(tiny, greedy, family, videos):
    model, inputs = tiny(family), sample_inputs(family, videos=videos)
    out = sparrow.generate(model, SpecVLM(), **inputs, max_new_tokens=NEW, eos_token_id=None)
    assert torch.equal(out.sequences, greedy(model, inputs, NEW))
    assert max(out.stats.accepted) > 1 and out.stats.tree == "25-5-8" and out.stats.depth == 5


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampled_output_is_that_of_plain_decoding(tiny, temperature):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl", videos=2)
    options = {"do_sample": True, "temperature": temperature, "seed": 3, "max_new_tokens": NEW, "eos_token_id": None}
    want = sparrow.generate(model, None, **inputs, **options).sequences
    assert torch.equal(sparrow.generate(model, SpecVLM(), **inputs, **options).sequences, want)


@pytest.mark.parametrize("family", FAMILIES)
def test_accepts_all_when_nothing_is_pruned(tiny, family):
    model, inputs = tiny(family), sample_inputs(family, videos=2)
    out = sparrow.generate(model, SpecVLM(keep=1.0), **inputs, max_new_tokens=1 + 6 * 6, eos_token_id=None)
    assert out.stats.accepted == [5] * 6 and out.stats.tau == 6


def slow_kept(scores, keep, mass):
    budget = max(1, round(keep * len(scores) * 1e9) // 10**9)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    top, held = [], 0.0
    for i in order:
        top.append(i)
        held += scores[i]
        if held >= mass * sum(scores) or len(top) == budget:
            break
    others = [i for i in range(len(scores)) if i not in top]
    missing = budget - len(top)
    spread = [others[j * (len(others) - 1) // max(missing - 1, 1)] for j in range(missing)]
    return sorted(top + spread)


@pytest.mark.parametrize("m", [1, 2, 9, 10, 97])
def test_kept_tokens(m):
    g = torch.Generator().manual_seed(m)
    seen = set()
    for keep in (0.01, 0.1, 0.3, 0.75, 1.0):
        for mass in (0.0, 0.1, 0.4, 1.0):
            for scores in (torch.rand(m, generator=g) ** 6, torch.randint(0, 3, (m,), generator=g).float() + 1):
                got = kept_tokens(scores, keep, mass).tolist()
                assert got == slow_kept(scores.double().tolist(), keep, mass), (keep, mass, scores)
                assert len(set(got)) == len(got) == max(1, int(keep * m + 1e-9))
                seen.add(tuple(got))
    assert m < 9 or len(seen) > 10


@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranking_is_the_text_s_attention(tiny, family, videos):
    """Beside transformers' own eager attention weights; the target's cache and attention are left as they were."""
    model, inputs = tiny(family), sample_inputs(family, videos=videos, text=70)
    target = Target(model)
    before = model.config.get_text_config()._attn_implementation
    text, first = video_text(target, inputs)
    want = eager_attention(model, inputs, first)
    assert len(text) - first > 64  # more than one piece
    got = []

    class Ranked(PrunedTarget):
        def begin(self, prompt):
            tokens, cache = prompt.tokens, prompt.cache
            keys = cache.buffer[..., : tokens.shape[1], :].clone()
            got.append(self.target.attention_from(tokens, first, prompt.prefill, cache)[0])
            assert torch.equal(keys, cache.buffer[..., : tokens.shape[1], :])
            return super().begin(prompt)

    sparrow.generate(
        model, Ranked(target, SpecVLM()), **inputs, max_new_tokens=4, eos_token_id=None, tree=SpecVLM().shape
    )
    torch.testing.assert_close(got[0], want, atol=1e-3, rtol=1e-3)
    assert model.config.get_text_config()._attn_implementation == before


@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_rows(tiny, family, videos):
    """All text, a tenth of the video, everything accepted: the target's own rows, bit by bit."""
    model, inputs = tiny(family), sample_inputs(family, videos=videos, frames=8)
    target = Target(model)
    loop = Watched(target, SpecVLM())
    out = sparrow.generate(model, loop, **inputs, max_new_tokens=NEW, eos_token_id=None, tree=SpecVLM().shape)
    text, first = video_text(target, inputs)
    visual, prompt = int((~text).sum()), len(text)
    budget = max(1, visual // 10) if visual else 0
    assert loop.prompt_rows == int(text.sum()) + budget
    kept = text.clone()
    if videos:
        sums, places = eager_attention(model, inputs, first), (~text).nonzero()[:, 0]
        kept[places[slow_kept(sums[places].double().tolist(), 0.1, 0.4)]] = True
    rows = kept.nonzero()[:, 0].tolist()
    covered = loop.state.draft.cache.get_seq_length()
    rows += range(prompt, prompt + covered - len(rows))
    assert covered > loop.prompt_rows + 10 and rows[-1] <= out.sequences.shape[1] - 2
    assert torch.equal(loop.state.draft.cache.buffer[..., :covered, :], loop.state.cache.buffer[..., rows, :])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_tree_is_the_pruned_target_s(tiny, family):
    """Every node's children are the likeliest tokens of transformers' own pass over the pruned cache and the path."""
    model, inputs = tiny(family), sample_inputs(family, frames=8)
    loop = Watched(Target(model), SpecVLM(keep=0.3))
    sparrow.generate(model, loop, **inputs, max_new_tokens=12, eos_token_id=None, tree=SpecVLM().shape)
    for length, position, tree in loop.trees[::3]:
        tokens, parents = tree.tokens[0].tolist(), tree.parent[0].tolist()
        assert len(tokens) == 26 and int(tree.num_nodes) == 26
        assert [parents.count(i) for i in range(26) if i in parents] == [n for level in STATIC_TREE for n in level]
        for node in sorted(set(parents) - {-1}):
            path = [node]
            while parents[path[0]] >= 0:
                path.insert(0, parents[path[0]])
            cache = DynamicCache()
            for layer in range(len(loop.state.draft.cache.layers)):
                keys, values = loop.state.draft.cache.buffer[layer, :, :, :, :length].clone()
                cache.update(keys, values, layer)
            ids = torch.tensor([[tokens[i] for i in path]])
            places = position + torch.arange(len(path))[None]
            if family == "qwen2_5_vl":
                places = places.expand(3, 1, -1)
            with torch.no_grad():
                out = model(input_ids=ids, position_ids=places, use_cache=True, **{cache_argument(model): cache})
                logits = out.logits[0, -1]
            children = [tokens[i] for i in range(26) if parents[i] == node]
            assert children == logits.topk(len(children)).indices.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 0}, r"SpecVLM.keep must lie in \(0, 1\], got 0"),
        ({"mass": 1.5}, r"SpecVLM.mass must lie in \[0, 1\], got 1.5"),
        ({"children": ((2,), (1, 1, 1))}, r"SpecVLM.children\[1\] must hold 1 to 2 numbers"),
        ({"children": ((2,), (0,))}, r"SpecVLM.children\[1\] must hold 1 to 2 numbers .* in \[1, 32\], got \(0,\)"),
        ({"children": ()}, "TreeConfig.total must be an integer"),
    ],
)
def test_settings_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        SpecVLM(**values)


def test_refuses(tiny):
    model, inputs = tiny("llava_onevision"), sample_inputs("llava_onevision")
    with pytest.raises(ValueError, match=r"tree must be None: SpecVLM's tree is static"):
        sparrow.generate(model, SpecVLM(), **inputs, max_new_tokens=4, tree=sparrow.TreeConfig(4, 2, 2))
    _, first = video_text(Target(model), inputs)
    cut = dict(inputs, input_ids=inputs["input_ids"][:, :first], attention_mask=inputs["attention_mask"][:, :first])
    with pytest.raises(ValueError, match="this prompt ends with a visual token"):
        sparrow.generate(model, SpecVLM(), **cut, max_new_tokens=4)
    with pytest.raises(ValueError, match="SpecVLM takes one sequence, got a batch of 2"):
        PrunedTarget(Target(model), SpecVLM()).begin(Prompt(torch.zeros(2, 3), None, None, None, None, 1, None))


def test_other_trees(tiny, greedy):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    for children in (((1,),), ((1,),) * 4, ((3,), (1, 1, 2), (4, 4, 1, 1))):
        out = sparrow.generate(
            model, SpecVLM(keep=0.5, children=children), **inputs, max_new_tokens=24, eos_token_id=None
        )
        assert torch.equal(out.sequences, greedy(model, inputs, 24))
        assert out.stats.depth == len(children) and max(out.stats.emitted) <= len(children) + 1


def test_by_name_on_the_command_line():
    assert read_drafter("specvlm") == SpecVLM() and read_drafter(None) is None


def test_in_the_evaluation(tmp_path):
    model, tokenizer, _ = miniature_pair()
    plan = Plan(
        "main", (SPECVLM,), ((64, 0.0), (64, 1.0)), clips=3, live=2, live_others=3, timed=1, runs=1, max_new_tokens=12
    )
    result = Evaluation(plan, model, tokenizer, SETTINGS, {}, tmp_path).write(tmp_path / "out.json", {})
    cells = [cell for cell in result["cells"] if cell["system"] == "SpecVLM"]
    assert len(cells) == 2
    for cell, reference in zip(cells, ("transformers", "plain"), strict=True):
        assert cell["identical"] == {"clips": 2, "of": 2, "to": reference} and cell["counts"]["tokens"] == 33
        assert cell["tau"]["value"] >= 1 and "replay_equals_live" not in cell


def test_bfloat16(tiny):
    model, inputs = tiny("qwen2_5_vl", 0, None, torch.bfloat16), sample_inputs("qwen2_5_vl", videos=2)
    inputs = {k: v.to(torch.bfloat16) if k.startswith("pixel") else v for k, v in inputs.items()}
    out = sparrow.generate(model, SpecVLM(keep=1.0), **inputs, max_new_tokens=24, eos_token_id=None)
    assert out.stats.new_tokens == 24 and out.stats.tau > 3  # near ties may part draft and verification
