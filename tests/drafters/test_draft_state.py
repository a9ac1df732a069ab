"""The drafter's text-only state: cache hygiene, alignment, independence of visual length, train/decode parity."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sparrow
import sparrow_ext
from sparrow.drafters.protocol import DecodeState, Prompt
from sparrow.drafters.text import DraftCache, TextDrafter
from sparrow.sampling import Sampler, SamplingRules
from sparrow.targets.adapter import Prefill, Target
from sparrow.tree import TreeConfig
from tests.videos import FAMILIES, sample_inputs

SHAPE = TreeConfig(12, 3, 4)


class Recorder(TextDrafter):
    """Keeps the state after every draft."""

    def draft(self, state, shape):
        tree = super().draft(state, shape)
        self.state, self.root = state, int(state.root[0])
        return tree


def full_states(model, inputs, sequence, layer):
    """The target's states of a whole sequence, by one plain forward pass."""
    more = sequence.shape[1] - inputs["input_ids"].shape[1]
    extended = dict(inputs, input_ids=sequence, attention_mask=torch.ones_like(sequence))
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        extended["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, more)], dim=1)
        positions, _ = model.model.get_rope_index(**{k: v for k, v in extended.items() if k != "pixel_values_videos"})
        last = positions[..., inputs["input_ids"].shape[1] - 1 : inputs["input_ids"].shape[1]]
        positions[..., inputs["input_ids"].shape[1] :] = last + 1 + torch.arange(more)
        extended["position_ids"] = positions
    with torch.no_grad():
        return model(**extended, output_hidden_states=True).hidden_states[layer]


@pytest.mark.parametrize(
    ("hidden_norm", "positions", "layer"), [(False, "text", 4), (True, "text", 3), (True, "target", 4)]
)
@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_cache_equals_one_shot_prefill(tiny, family, videos, hidden_norm, positions, layer):
    """After any number of rounds the drafter's rows are those of one forward over the whole sequence, true states."""
    model, inputs = tiny(family), sample_inputs(family, videos=videos)
    target = Target(model)
    drafter = sparrow.SparrowDrafter.from_target(
        target, hidden_norm=hidden_norm, positions=positions, hidden_layer=layer
    )
    recorder = Recorder(drafter)
    out = sparrow.generate(  # no placeholders in the text: the plain forward below would take them for videos
        model,
        recorder,
        **inputs,
        max_new_tokens=30,
        eos_token_id=None,
        tree=SHAPE,
        suppress_tokens=[290, 291, 292, 293],
    )
    prompt, cache = inputs["input_ids"].shape[1], recorder.state.draft.cache
    is_text = torch.ones_like(out.sequences, dtype=torch.bool)
    is_text[:, :prompt] = ~torch.isin(inputs["input_ids"], torch.tensor(sorted(target.visual_tokens())))
    n = out.sequences.shape[1]
    rows = int(cache.lengths[0])
    text = is_text[0].nonzero()[:, 0][:rows]  # all rows up to the last root the drafter saw
    assert n - 1 - SHAPE.max_path <= int(text[-1]) <= n - 1
    states = drafter.reuse(full_states(model, inputs, out.sequences, layer))
    hidden = torch.where((text > 0)[:, None], states[0, text - 1], 0.0)
    numbers = torch.arange(rows)[None]
    if positions == "target":
        numbers = recorder.state.draft.pending.positions[:, :1] - (int(text[-1]) - text)[None]
        numbers = torch.where(text[None] >= prompt, numbers, 0)
    x = drafter.fc(torch.cat([drafter.embedding[out.sequences[0, text]], hidden], dim=-1))[None]
    qkv = drafter.layers[0].self_attn.qkv_proj(drafter.layers[0].input_layernorm(x))
    want_values = qkv[..., -cache.values.shape[2] * cache.values.shape[3] :].view(rows, *cache.values.shape[2:])
    torch.testing.assert_close(cache.values[0, :rows], want_values, atol=2e-4, rtol=1e-3)
    if positions == "text":
        one_shot = DraftCache.empty(drafter, 1, rows)
        index = torch.arange(rows, dtype=torch.int32)[None]
        drafter.extend(
            out.sequences[:, text], index, hidden, numbers, one_shot.keys, one_shot.values, one_shot.lengths, 0
        )
        torch.testing.assert_close(cache.keys[0, :rows], one_shot.keys[0, :rows], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("layer", [0, 1, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_transformers(tiny, family, layer):
    """The hook's states are hidden_states[layer], in every release: 0 = embeddings, 4 = after the final norm."""
    model, inputs = tiny(family), sample_inputs(family)
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
        with Target(model)._states_of(layer) as states:
            model(**inputs)
        model(**inputs)  # the hook is gone
    assert len(out.hidden_states) == 5 and len(states) == 1
    assert torch.equal(states[0], out.hidden_states[layer])


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_training_forward_equals_decoding(tiny, num_layers):
    drafter = sparrow.SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")), hidden_norm=True, num_layers=num_layers)
    g = torch.Generator().manual_seed(0)
    tokens, hidden = torch.randint(3, 280, (1, 150), generator=g), torch.randn(150, 64, generator=g)
    positions = torch.arange(150)[None]
    with torch.no_grad():
        want = drafter.logits(drafter(tokens, hidden[None], positions))
    cache, got, start = DraftCache.empty(drafter, 1, 150), [], 0
    for n in (1, 63, 1, 64, 2, 19):  # any chunking gives the same rows
        rows = slice(start, start + n)
        index = torch.arange(start, start + n, dtype=torch.int32)[None]
        got.append(
            drafter.extend(
                tokens[:, rows], index, hidden, positions[:, rows], cache.keys, cache.values, cache.lengths, 0
            )
        )
        cache.lengths += n
        start += n
    torch.testing.assert_close(drafter.logits(torch.cat(got, dim=1)), want, atol=1e-5, rtol=1e-5)


class OpCalls(TorchDispatchMode):
    """Records sparrow's operator calls with their shapes."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sparrow" and func._opname != "text_compact":  # its input is the whole prompt's mask
            self.calls.append((func._opname, [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]))
        return func(*args, **(kwargs or {}))


def drafted(drafter, visual: int, change: float = 0.0):
    """One tree after a prompt of equal text around `visual` visual tokens, with equal states at the text."""
    g = torch.Generator().manual_seed(1)
    before, after = torch.randint(3, 280, (1, 6), generator=g), torch.randint(3, 280, (1, 9), generator=g)
    states, bridge = torch.randn(1, 15, 64, generator=g), torch.randn(1, 1, 64, generator=g) + change
    video = torch.full((1, visual), 291)
    prompt = torch.cat([before, video, after], dim=1)
    noise = torch.randn(1, max(visual - 1, 0), 64)
    # h of the token before the second text block: the last visual row, or the last text row where there is none.
    first = torch.cat([states[:, :5], bridge], dim=1) if visual == 0 else states[:, :6]
    visual_states = torch.cat([noise, bridge], dim=1) if visual else noise
    hidden = torch.cat([first, visual_states, states[:, 6:]], dim=1)
    p = prompt.shape[1]
    prefill = Prefill(torch.zeros(1, 300), hidden, torch.tensor([[p]]), torch.arange(p)[None])
    root, error, loop = torch.tensor([42]), sparrow_ext.error_word("cpu"), TextDrafter(drafter)
    with OpCalls() as recorded:
        draft = loop.begin(Prompt(prompt, prompt != 291, prefill, root, None, 16, error))
        state = DecodeState.after_prompt(None, root, torch.tensor([p + 1]), torch.tensor([[p]]),
                                         Sampler(SamplingRules(), prompt, 300), draft, error, SHAPE,
                                         hidden)  # fmt: skip
        tree = loop.draft(state, SHAPE)
    n = int(draft.cache.lengths[0])
    calls = [c if c[0] != "hsr_project" else (c[0], [s for i, s in enumerate(c[1]) if i != 3]) for c in recorded.calls]
    return tree, draft.cache.keys[:, :n], draft.cache.values[:, :n], calls


def test_drafter_does_not_depend_on_visual_length(tiny):
    drafter = sparrow.SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")))
    tree, keys, values, calls = drafted(drafter, 0)
    assert keys.shape[1] == 16 and len(calls) > 10
    for visual in (1, 64, 4096):
        other_tree, other_keys, other_values, other_calls = drafted(drafter, visual)
        assert all(torch.equal(a, b) for a, b in zip(tree, other_tree, strict=True))
        assert torch.equal(keys, other_keys) and torch.equal(values, other_values)
        assert calls == other_calls
    other_tree, _, other_values, _ = drafted(drafter, 64, change=30.0)
    assert not torch.equal(values, other_values) and not torch.equal(tree.tokens, other_tree.tokens)


def test_first_token_reuses_nothing(tiny):
    """The prompt's first token has no previous state: a zero row."""
    drafter = sparrow.SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")))
    _, _, values, _ = drafted(drafter, 0)
    g = torch.Generator().manual_seed(1)
    token = torch.randint(3, 280, (1, 6), generator=g)[0, 0]
    x = drafter.fc(torch.cat([drafter.embedding[token], torch.zeros(64)]))
    qkv = drafter.layers[0].self_attn.qkv_proj(drafter.layers[0].input_layernorm(x))
    torch.testing.assert_close(values[0, 0].flatten(), qkv[-32:])


def test_draft_vocabulary(tiny, greedy):
    """A trimmed head proposes only its ids, and the output stays exact."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    target = Target(model)
    drafter = sparrow.SparrowDrafter.from_target(target, draft_vocab=True)
    drafter.set_draft_vocab(torch.arange(10, 200, 10))
    recorder = Recorder(drafter)
    drafter.attach(target)
    trees = []
    inner = recorder.draft
    recorder.draft = lambda state, shape: trees.append(inner(state, shape)) or trees[-1]
    out = sparrow.generate(model, recorder, **inputs, max_new_tokens=20, eos_token_id=None, tree=SHAPE)
    assert torch.equal(out.sequences, greedy(model, inputs, 20))
    proposed = torch.cat([t.tokens[0, 1 : int(t.num_nodes[0])] for t in trees])
    assert len(proposed) and bool((proposed % 10 == 0).all())


def test_the_draft_vocabularys_rows_stay_where_they_are(tiny):
    """Calls that follow share captured rounds and measured costs, which go by address; they see a head that changed."""
    target = Target(copy.deepcopy(tiny("qwen2_5_vl")))
    drafter = sparrow.SparrowDrafter.from_target(target, draft_vocab=True)
    drafter.set_draft_vocab(torch.arange(10, 200, 10))
    first = drafter.in_loop(target, None)[0].identity()
    assert drafter.in_loop(target, None)[0].identity() == first
    target.head.weight.data.mul_(2)  # no version counts this
    assert drafter.in_loop(target, None)[0].identity() == first
    assert torch.equal(drafter.draft_rows, target.head.weight[drafter.draft_vocab_ids])
    drafter.set_draft_vocab(torch.arange(10, 100, 10))
    assert drafter.in_loop(target, None)[0].identity() != first
    assert torch.equal(drafter.draft_rows, target.head.weight[drafter.draft_vocab_ids])


@pytest.mark.parametrize("trimmed", [False, True])
def test_head_that_is_no_plain_weight(tiny, trimmed):
    """A head with a bias goes through its own module: the proposals are those of its logits."""
    target = Target(tiny("qwen2_5_vl"))
    drafter = sparrow.SparrowDrafter.from_target(target, draft_vocab=trimmed)
    ids = torch.arange(5, 290, 3) if trimmed else torch.arange(300)
    if trimmed:
        drafter.set_draft_vocab(ids)
    head = torch.nn.Linear(64, 300)
    drafter.bind(target.embedding, head, target.norm)
    out = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logp, tokens = drafter.propose(out, 5)
        want = head(drafter.norm(out))[..., ids].log_softmax(-1).topk(5)
    torch.testing.assert_close(logp, want.values)
    assert torch.equal(tokens, ids[want.indices])


def test_tree_larger_than_the_draft_vocabulary(tiny, greedy):
    """Fewer candidates than the tree asks for: the rest of the tree is padding."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    drafter = sparrow.SparrowDrafter.from_target(Target(model), draft_vocab=True)
    drafter.set_draft_vocab(torch.tensor([5, 9]))
    out = sparrow.generate(model, drafter, **inputs, max_new_tokens=12, eos_token_id=None, tree=TreeConfig(30, 2, 8))
    assert torch.equal(out.sequences, greedy(model, inputs, 12))


def test_storage(tiny, tmp_path):
    target = Target(tiny("llava_onevision"))
    drafter = sparrow.SparrowDrafter.from_target(target, seed=3, draft_vocab=True, hidden_norm=True)
    drafter.set_draft_vocab(torch.tensor([7, 3, 200]))
    drafter.save_pretrained(tmp_path / "d")
    again = sparrow.SparrowDrafter.from_pretrained(tmp_path / "d")
    again.attach(target)
    assert again.config == drafter.config
    mine, theirs = drafter.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert mine["fc.weight"].shape == (64, 128) and "norm.weight" in mine and not any("embed" in k for k in mine)
    with pytest.raises(ValueError, match="family='llava_onevision'; this one has 'qwen2_5_vl'"):
        again.attach(Target(tiny("qwen2_5_vl")))
    with pytest.raises(ValueError, match="head_signs"):
        again.attach(Target(tiny("llava_onevision", 1)))
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        sparrow.SparrowDrafter.from_pretrained(tmp_path / "nothing")
    text = (tmp_path / "d" / "config.json").read_text()
    for bad, message in [
        (text.replace('"rope_theta"', '"rope_thata"'), "unknown keys .* rope_thata"),
        (text.replace('"format_version": 1', '"format_version": 2'), "format_version must be 1"),
        (text.replace('"own"', '"mine"'), "output_norm must be"),
        ("{", r"d/config.json does not fit: Expecting property name"),
        (text.replace('"hidden_size": 64', '"hidden_size": "64"'), r"d/config.json does not fit"),
        (text.replace('"hidden_size": 64', '"hidden_size": 32'), "do not fit its config: size mismatch for fc.weight"),
    ]:
        assert bad != text
        (tmp_path / "d" / "config.json").write_text(bad)
        with pytest.raises(ValueError, match=message):
            sparrow.SparrowDrafter.from_pretrained(tmp_path / "d")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_target_is_no_drafter(tiny, tmp_path, sharded):
    tiny("qwen2_5_vl").save_pretrained(tmp_path, max_shard_size="200KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors").exists() != sharded
    with pytest.raises(
        ValueError, match=r"config.json does not fit: this is a target \(model_type 'qwen2_5_vl'\), not a drafter"
    ):
        sparrow.SparrowDrafter.from_pretrained(tmp_path)


def test_unbound(tiny, tmp_path):
    drafter = sparrow.SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")))
    drafter.save_pretrained(tmp_path)
    again = sparrow.SparrowDrafter.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"shares its target's embedding and head: call bind\(\) first"):
        again.logits(torch.zeros(1, 64))


def test_broken_weights(tiny, tmp_path):
    drafter = sparrow.SparrowDrafter.from_target(Target(tiny("qwen2_5_vl")))
    for value in (float("nan"), float("inf")):
        drafter.fc.weight.data[3, 5] = value
        drafter.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"must be finite: fc.weight is not"):
            sparrow.SparrowDrafter.from_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors is not safetensors, or cut short"):
        sparrow.SparrowDrafter.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 1), r"total must be an integer in \[1, 127\], got 0"),
        ((128, 4, 8), r"total must be an integer in \[1, 127\], got 128"),
        ((3, 4, 8), "must be at least depth"),
        ((30, 1, 8), "at most the 8 candidates"),
        ((60, 17, 8), "depth \\* width must be at most 128"),
        ((30.0, 4, 8), "must be an integer"),
    ],
)
def test_tree_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        TreeConfig(*values)


def test_tree_config_words():
    assert TreeConfig.parse("30-4-8") == TreeConfig(30, 4, 8) and str(TreeConfig(30, 4, 8)) == "30-4-8"
    assert TreeConfig.chain(5) == TreeConfig(5, 5, 1)
    assert sorted(sparrow.PRESETS) == ["25-5-8", "30-4-8", "40-10-6", "48-5-10"]
    with pytest.raises(ValueError, match="total-depth-width"):
        TreeConfig.parse("30x4x8")
