"""Verifying a tree and decoding its paths token by token give the same bits: logits and states, in every dtype.

On the CPU. It takes all of it: skinny_linear, tree_attention's order of keys, and whatever else the models compute.
"""

import contextlib

import pytest
import torch
from torch import nn

import sparrow
from sparrow.targets.adapter import Target
from sparrow.targets.attention import NAME, attention_in
from sparrow.targets.linear import is_plain, skinny_linear_in
from sparrow.targets.tiny import TinySize, tiny_target
from sparrow.tree import TreeConfig
from sparrow_ext import tree_mask
from tests.decoding.scripted import ScriptedDrafter
from tests.ops.checks import DTYPES, random_tree
from tests.videos import FAMILIES, sample_inputs

ROOT = torch.tensor([[-1]], dtype=torch.int32)


@contextlib.contextmanager
def through_modules(model):
    """A hook that does nothing: verify passes run through transformers' modules inside."""
    hook = model.model.language_model.norm.register_forward_hook(lambda *args: None)
    try:
        yield
    finally:
        hook.remove()


class Text:
    """A text prompt in a target, from which trees and paths are verified, by default as sparrow.generate does."""

    def __init__(self, model, length, verifying=None):
        self.target, g = Target(model), torch.Generator().manual_seed(length)
        self.verifying = verifying or self.target.verifying
        self.ids = torch.randint(3, 280, (1, length), generator=g)
        axes = 1 if "qwen" not in self.target.family else 3
        positions = torch.arange(length).expand(axes, 1, length)
        self.positions = positions if axes == 3 else positions[0]

    def start(self, nodes):
        """A cache that holds the prompt, with room for `nodes` more, and the position of the next token."""
        cache = self.target.new_cache(self.ids.shape[1] + nodes)
        inputs = {self.target.cache_argument: cache, "position_ids": self.positions}
        return cache, self.target.prefill(self.ids, inputs, None).next_position

    def tree(self, tokens, parent):
        anc, depth = tree_mask(parent)
        cache, position = self.start(tokens.shape[1])
        with self.verifying():
            logits, states = self.target.verify(tokens, anc, position + depth, cache, self.target.num_layers)
        return logits[0], states[0]

    def path(self, tokens):
        """The same, one token after the other, each committed before the next."""
        cache, position = self.start(len(tokens))
        anc, _ = tree_mask(ROOT)
        rows = []
        with self.verifying():
            for depth, token in enumerate(tokens):
                rows.append(self.target.verify(token.view(1, 1), anc, position + depth, cache, self.target.num_layers))
                cache.commit(torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32))
                cache.count([1])
        return torch.cat([logits[0] for logits, _ in rows]), torch.cat([states[0] for _, states in rows])


def paths(parent):
    """Node numbers of every root-to-leaf path."""
    parents = parent[0].tolist()
    for leaf in set(range(len(parents))) - set(parents):
        path = [leaf]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        yield path


def differing_rows(text, nodes=26):
    """How many rows of all paths differ between the tree and the path alone."""
    g = torch.Generator().manual_seed(nodes)
    parent = random_tree(nodes, g)[None]
    tokens = torch.randint(3, 280, (1, nodes), generator=g)
    together = text.tree(tokens, parent)
    different = 0
    for path in paths(parent):
        alone = text.path(tokens[0, path])
        different += sum(
            not all(torch.equal(a[i], b[node]) for a, b in zip(alone, together, strict=True))
            for i, node in enumerate(path)
        )
    return different


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tree_rows_are_path_rows(family, dtype):
    text = Text(tiny_target(family, 0, dtype=dtype), 37)
    assert differing_rows(text) == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_through_the_modules(family, dtype):
    text = Text(tiny_target(family, 0, dtype=dtype), 37)
    with through_modules(text.target.model):
        assert differing_rows(text) == 0


# A prefix that is whole blocks (64), one that ends inside one, paths that cross a block, a split (1024), or both.
@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 63, 64, 1021, 1024])
def test_at_every_boundary(length, dtype):
    text = Text(tiny_target("llava_onevision", 1, dtype=dtype), length)
    assert differing_rows(text, 20) == 0


@torch.no_grad()
def test_odd_sizes():
    """Any sizes but one: torch's float32 silu computes what is left of 32 values by another formula than the rest, so a
    row's bits depend on its neighbours unless the intermediate size is a multiple of 32 (real models' are).
    """
    size = TinySize(hidden_size=60, num_heads=6, num_kv_heads=3, intermediate_size=160)
    for dtype in DTYPES:
        text = Text(tiny_target("llava_onevision", 2, size, dtype), 41)
        assert differing_rows(text) == 0, dtype


@torch.no_grad()
def test_needs_skinny_linear():
    """The comparison sees a difference where there is one: F.linear's rows depend on their number."""
    model = tiny_target("llava_onevision", 0)
    assert differing_rows(Text(model, 37, lambda: attention_in(model, NAME))) > 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_bf16_trees_give_the_tokens_of_plain_decoding(family, seed):
    model, inputs = tiny_target(family, seed, dtype=torch.bfloat16), sample_inputs(family, seed=seed)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    options = {**inputs, "max_new_tokens": 64, "eos_token_id": None, "do_sample": False}
    plain = sparrow.generate(model, None, **options).sequences
    for right in (lambda r: r % 6, lambda r: 5):
        scripted = ScriptedDrafter(plain[0], right)
        assert torch.equal(sparrow.generate(model, scripted, **options, tree=TreeConfig(15, 5, 3)).sequences, plain)
    drafter = sparrow.SparrowDrafter.from_target(Target(model), seed=seed)
    assert torch.equal(sparrow.generate(model, drafter, **options, tree="25-5-8").sequences, plain)


# --- which layers are replaced ---


class Sub(nn.Linear):
    pass


def hooked(layer):
    layer.register_forward_hook(lambda *args: None)
    return layer


def offloaded(layer):
    layer.forward = lambda x: x
    return layer


def strided_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    return layer


LEFT_ALONE = {
    "subclass": lambda: Sub(8, 8),
    "hook": lambda: hooked(nn.Linear(8, 8)),
    "own forward": lambda: offloaded(nn.Linear(8, 8)),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "columns apart": lambda: strided_weight(nn.Linear(8, 8)),
    "float64": lambda: nn.Linear(8, 8).double(),
    "elsewhere": lambda: nn.Linear(8, 8, device="meta"),
    "no linear": lambda: nn.LayerNorm(8),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_not_plain_is_left_alone(name):
    layer, cpu = LEFT_ALONE[name](), torch.device("cpu")
    assert not is_plain(layer, cpu) and is_plain(nn.Linear(8, 8), cpu)
    before = dict(vars(layer))
    with skinny_linear_in([layer], cpu):
        assert vars(layer) == before
    assert vars(layer) == before


def test_autocast_leaves_all_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(nn.Linear(8, 8), torch.device("cpu"))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_layers_are_replaced_inside_and_restored(tiny, error):
    target = Target(tiny("qwen2_5_vl"))
    layers = [m for m in target.model.modules() if type(m) is nn.Linear]
    with through_modules(target.model), contextlib.suppress(KeyboardInterrupt), target.verifying():
        with target.verifying():  # twice: the inner one finds nothing to replace
            pass
        replaced = {m for m in layers if "forward" in vars(m)}
        decoders = {m for m in target.decoder.modules() if type(m) is nn.Linear}
        assert replaced == decoders | {target.head} and len(decoders) == 7 * target.num_layers
        assert set(layers) - replaced, "the vision tower's layers are left alone"
        if error:
            raise error
    assert not any("forward" in vars(m) for m in layers)
