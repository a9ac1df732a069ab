"""Verify passes through Blocks: the numbers of transformers' modules, and the modules wherever a model was changed."""

import contextlib
import functools

import pytest
import torch
from torch import nn

import sparrow
import sparrow_ext
from sparrow.targets import blocks
from sparrow.targets.adapter import Target
from sparrow.targets.attention import NAME, attention_in
from sparrow.targets.blocks import runs_through_blocks
from sparrow.targets.linear import skinny_linear_in
from sparrow.targets.tiny import TinySize, tiny_target
from sparrow.tree import TreeConfig
from sparrow_ext import tree_mask
from tests.decoding.scripted import ScriptedDrafter
from tests.decoding.test_path_invariance import Text, through_modules
from tests.ops.checks import random_tree
from tests.videos import FAMILIES, sample_inputs

CPU = torch.device("cpu")


def both(model, layers, nodes=13, length=37):
    """Logits and states of a tree by Blocks, and by the modules with the same attention and linear layers."""
    text, g = Text(model, length), torch.Generator().manual_seed(nodes)
    target, anc, depth = text.target, *tree_mask(random_tree(nodes, g)[None])
    tokens = torch.randint(3, 280, (1, nodes), generator=g)
    cache, position = text.start(nodes)
    with target.verifying():
        assert target._blocks is not None
        own = target.verify(tokens, anc, position + depth, cache, layers)
    rows = cache.buffer.clone()
    with attention_in(model, NAME), skinny_linear_in([*target.decoder.modules(), target.head], CPU):
        theirs = target.verify(tokens, anc, position + depth, cache, layers)
    return (*own, rows), (*theirs, cache.buffer)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_modules_numbers_in_float32(family):
    """Every step but the norms' means and e^x is the same sum in the same order."""
    model, g = tiny_target(family, 0), torch.Generator().manual_seed(1)
    for name, weight in model.model.language_model.named_parameters():
        if "norm" in name:
            weight.copy_(torch.rand(weight.shape, generator=g) + 0.5)
        if name.endswith("bias"):  # transformers begins with zeros
            weight.copy_(torch.randn(weight.shape, generator=g) / 8)
    layers = tuple(range(len(model.model.language_model.layers) + 1))
    for own, theirs in zip(*both(model, layers), strict=True):
        assert (own - theirs).abs().max() <= 16 * torch.finfo(torch.float32).eps * theirs.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_close_in_16_bits(family, dtype):
    """Queries and keys are rotated in float32 and rounded once, by the modules three times."""
    (logits, states, _), (their_logits, their_states, _) = both(tiny_target(family, 0, dtype=dtype), 1)
    few = 16 * torch.finfo(dtype).eps
    for own, theirs in ((logits, their_logits), (states.float(), their_states.float())):
        assert (own - theirs).abs().max() <= few * theirs.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("wanted", [None, 0, 1, 2, (0, 2), (1,)])
def test_states_that_are_asked_for(wanted):
    for own, theirs in zip(*both(tiny_target("qwen2_5_vl", 3, TinySize(num_layers=2)), wanted), strict=True):
        assert own.shape == theirs.shape and torch.allclose(own, theirs, rtol=1e-5, atol=1e-6)


def test_the_model_itself_is_not_called(tiny, monkeypatch):
    model, inputs, calls = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl"), []
    forward = type(model).forward

    @functools.wraps(forward)
    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counted)
    sparrow.generate(model, None, **inputs, max_new_tokens=6, eos_token_id=None)
    assert len(calls) == 1, "the prompt alone"


@torch.no_grad()
@pytest.mark.parametrize("changed", [False, True])
def test_attention_has_the_error_word(tiny, monkeypatch, changed):
    """On a GPU it says of lengths beyond the cache what the CPU raises."""
    text, given, real = Text(tiny("qwen2_5_vl"), 37), [], sparrow_ext.tree_attention
    monkeypatch.setattr(sparrow_ext, "tree_attention", lambda *a, **k: (given.append(k["error"]), real(*a, **k))[1])
    cache, position = text.start(1)
    anc, _ = tree_mask(torch.tensor([[-1]], dtype=torch.int32))
    word = sparrow_ext.error_word(CPU)
    with through_modules(text.target.model) if changed else contextlib.nullcontext(), text.target.verifying():
        text.target.verify(torch.tensor([[5]]), anc, position, cache, None, word)
    assert len(given) == text.target.num_layers and all(error is word for error in given)


# --- what was changed runs as it was changed ---


class Linear(nn.Linear):
    pass


def replaced(layer, name):
    old = getattr(layer.mlp, name)
    new = Linear(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    setattr(layer.mlp, name, new)


class Adapted(nn.Module):
    """A linear layer inside another module, as LoRA's."""

    def __init__(self, base):
        super().__init__()
        self.base, self.more = base, nn.Linear(base.in_features, base.out_features, bias=False)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + self.more(x)


class Norm(nn.Module):
    """A norm of another kind with the attributes of transformers' own."""

    def __init__(self, old):
        super().__init__()
        self.weight, self.variance_epsilon = old.weight, old.variance_epsilon

    def forward(self, x):
        return x * (1 + self.weight)


def doubled(layer):
    real = layer.mlp.forward
    layer.mlp.forward = lambda x: 2 * real(x)


CHANGES = {
    "hook of a layer": lambda m: m.model.language_model.layers[1].register_forward_hook(lambda *a: None),
    "hook of a norm": lambda m: m.model.language_model.layers[1].input_layernorm.register_forward_pre_hook(
        lambda *a: None
    ),
    "hook of the model": lambda m: m.register_forward_hook(lambda *a: None),
    "linear of another kind": lambda m: replaced(m.model.language_model.layers[1], "up_proj"),
    "forward of its own": lambda m: doubled(m.model.language_model.layers[1]),
    "head of another kind": lambda m: setattr(m, "lm_head", Linear(*m.lm_head.weight.shape[::-1], bias=False)),
    "activation": lambda m: setattr(m.model.language_model.layers[1].mlp, "act_fn", nn.GELU()),
    "an adapter in one layer": lambda m: setattr(
        m.model.language_model.layers[2].self_attn, "q_proj", Adapted(m.model.language_model.layers[2].self_attn.q_proj)
    ),
    "norm of another kind": lambda m: setattr(
        m.model.language_model.layers[2], "input_layernorm", Norm(m.model.language_model.layers[2].input_layernorm)
    ),
    "torch's norm": lambda m: setattr(m.model.language_model, "norm", nn.LayerNorm(m.lm_head.in_features)),
    "embedding of another kind": lambda m: setattr(
        m.model.language_model, "embed_tokens", type("E", (nn.Embedding,), {})(*m.lm_head.weight.shape)
    ),
    "one more linear": lambda m: m.model.language_model.layers[0].mlp.add_module("more", nn.Linear(2, 2)),
    "layer of another kind": lambda m: setattr(
        m.model.language_model.layers[0], "__class__", type("Other", (type(m.model.language_model.layers[0]),), {})
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_models_run_through_their_modules(change):
    model, inputs = tiny_target("llava_onevision", 5), sample_inputs("llava_onevision")
    assert runs_through_blocks(model, CPU)
    CHANGES[change](model)
    assert not runs_through_blocks(model, CPU)
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=None)
    drafter = ScriptedDrafter(expected[0], lambda r: r % 3)
    out = sparrow.generate(
        model, drafter, **inputs, max_new_tokens=12, eos_token_id=None, tree=TreeConfig(15, 5, 3)
    ).sequences
    assert torch.equal(out, expected)


def test_a_model_that_was_asked_for_its_hidden_states_is_not_changed():
    """transformers hooks its layers for good then."""
    model, inputs = tiny_target("qwen2_5_vl", 6), sample_inputs("qwen2_5_vl")
    expected = sparrow.generate(model, None, **inputs, max_new_tokens=6, eos_token_id=None).sequences
    model(**inputs, output_hidden_states=True)
    assert runs_through_blocks(model, CPU) and Target(model).identity() is not None
    again = sparrow.generate(model, None, **inputs, max_new_tokens=6, eos_token_id=None).sequences
    assert torch.equal(again, expected)


def test_a_norm_in_float32_runs_through_the_modules():
    """As transformers keeps some of some models."""
    model, inputs = tiny_target("llava_onevision", 7, dtype=torch.bfloat16), sample_inputs("llava_onevision")
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    assert runs_through_blocks(model, CPU)
    model.model.language_model.norm.float()
    assert not runs_through_blocks(model, CPU)


def test_tomorrows_transformers_runs_its_own_modules(tiny, monkeypatch):
    """Its layers may compute something else under the same names."""
    assert runs_through_blocks(tiny("qwen2_5_vl"), CPU)
    monkeypatch.setattr(blocks.transformers, "__version__", "5.999.0")
    assert not runs_through_blocks(tiny("qwen2_5_vl"), CPU)


def test_autocast_is_left_to_the_modules(tiny):
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs_through_blocks(tiny("qwen2_5_vl"), CPU)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_only_inside(tiny, error):
    target = Target(tiny("qwen2_5_vl"))
    with contextlib.suppress(KeyboardInterrupt), target.verifying():
        with target.verifying():
            pass
        assert target._blocks is not None
        if error:
            raise error
    assert target._blocks is None
    with through_modules(target.model), target.verifying():
        assert target._blocks is None


@torch.no_grad()
def test_every_target_of_the_model_goes_that_way(tiny):
    """A drafter may hold an adapter of its own over the same model."""
    model = tiny("qwen2_5_vl")
    text, other = Text(model, 37), Target(model)
    cache, position = text.start(1)
    anc, _ = tree_mask(torch.tensor([[-1]], dtype=torch.int32))
    with text.target.verifying():
        assert other._blocks is text.target._blocks is not None
        logits, _ = other.verify(torch.tensor([[5]]), anc, position, cache, None)
    assert logits.shape[1] == 1 and other._blocks is None
