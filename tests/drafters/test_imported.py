"""Public drafters' checkpoints: what an imported one computes is what its description says."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import sparrow
from sparrow.drafters.imported import import_drafter
from sparrow.drafters.text import TextDrafter
from sparrow.drafters.visual import VisualDrafter
from sparrow.targets.adapter import Target
from sparrow.targets.folder import TargetFolder
from sparrow.tree import TreeConfig
from tests.decoding.scripted import ScriptedDrafter
from tests.drafters.checkpoints import Reference, make
from tests.drafters.test_draft_state import full_states
from tests.videos import FAMILIES, sample_inputs

SHAPE = TreeConfig(12, 3, 4)
NEW = 20
NO_MARKS = {"suppress_tokens": [290, 291, 292, 293], "eos_token_id": None, "max_new_tokens": NEW}
KINDS = ["EAGLE", "MSD", "ViSpec", "EAGLE-3", "speculators"]
MROPE = {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}


@pytest.fixture(scope="session")
def folder_of(tiny, tmp_path_factory):
    """folder_of(family) -> the tiny target's folder."""
    folders = {}

    def save(family: str):
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            tiny(family).save_pretrained(folders[family])
        return folders[family]

    return save


def led(drafter, truth):
    """The drafter in the loop: drafts, keeps what it made, then proposes what the script says."""

    class Led(VisualDrafter if drafter.config.positions == "sequence" else TextDrafter):
        script = ScriptedDrafter(truth, lambda r: r % 4)

        def draft(self, state, shape):
            self.tree, self.state, self.length = super().draft(state, shape), state, int(state.length[0])
            return self.script.draft(state, shape)

    return Led(drafter)


def paths(tree) -> set[tuple[int, ...]]:
    """The drafted paths of a tree, its root left out."""
    tokens, parents, found = tree.tokens[0].tolist(), tree.parent[0].tolist(), [()]
    for at in range(1, int(tree.num_nodes[0])):
        found.append((*found[parents[at]], tokens[at]))
    return set(found[1:])


@pytest.mark.parametrize("taken", ["text", "all"])
@pytest.mark.parametrize("videos", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_it_computes_what_is_described(tiny, folder_of, tmp_path, family, kind, videos, taken):
    """After some rounds of every length: logits, keys and values, and the tree, as a slow forward has them."""
    model, inputs = tiny(family), sample_inputs(family, videos=videos)
    target = Target(model)
    weights = make(tmp_path / "public", kind, target)
    _, drafter = import_drafter(tmp_path / "public", TargetFolder(folder_of(family)), vata=taken == "text")
    drafter.save_pretrained(tmp_path / "ours")
    drafter = sparrow.SparrowDrafter.from_pretrained(tmp_path / "ours")
    drafter.attach(target)
    truth = model.generate(**inputs, do_sample=False, **NO_MARKS)
    looped = led(drafter, truth[0])
    out = sparrow.generate(model, looped, **inputs, **NO_MARKS, tree=SHAPE)
    assert torch.equal(out.sequences, truth) and set(out.stats.accepted) >= {0, 1, 2, 3}
    n, prompt = looped.length, inputs["input_ids"].shape[1]
    is_text = torch.ones(n, dtype=torch.bool)
    is_text[:prompt] = target.is_text(inputs["input_ids"][0])
    states = torch.cat([full_states(model, inputs, truth, k)[0] for k in drafter.config.state_layers], -1)
    given = full_states(model, inputs, truth, 0)[0]
    reference = Reference(kind, weights, target.embedding, target.head.weight, taken)
    rows, g = reference.sequence(truth[0, :n], is_text, states, given)
    _, keys, values = reference.project(rows)
    cache = looped.state.draft.cache
    assert int(cache.lengths[0]) == len(rows) and rows[-1][0] == n - 1
    torch.testing.assert_close(cache.values[0, : len(rows)].double(), values, atol=3e-4, rtol=1e-3)
    torch.testing.assert_close(cache.keys[0, : len(rows)].double(), keys, atol=3e-4, rtol=1e-3)
    assert paths(looped.tree) == reference.tree(rows, g, SHAPE.total, SHAPE.depth, SHAPE.width)
    if taken == "text":  # the same rows in one forward in plain PyTorch, as in training
        text = torch.tensor([t for t, _, _ in rows])
        with torch.no_grad():
            hidden = drafter.reuse(states[text - 1])[None]
            logits = drafter.logits(drafter(truth[:, text], hidden, text[None]))[0, -1]
        want = reference.log_probabilities(reference.last(rows))
        want = want[drafter.draft_vocab_ids] if drafter.config.draft_vocab else want
        torch.testing.assert_close(logits.double().log_softmax(0), want, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [1, 9])
def test_short_prompts_and_sampling(tiny, folder_of, tmp_path, kind, text):
    """The output is the target's own, sampled and greedy; a prompt of one token has no row at all."""
    model = tiny("qwen2_5_vl")
    make(tmp_path, kind, Target(model))
    _, drafter = import_drafter(tmp_path, TargetFolder(folder_of("qwen2_5_vl")))
    drafter.attach(Target(model))
    ids = sample_inputs("qwen2_5_vl", videos=0, text=9)["input_ids"][:, :text]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "eos_token_id": None, "max_new_tokens": 24}
    want = model.generate(**inputs, do_sample=False)
    assert torch.equal(sparrow.generate(model, drafter, **inputs).sequences, want)
    noise = {"do_sample": True, "temperature": 0.8, "seed": 3}
    want = sparrow.generate(model, None, **inputs, **noise).sequences
    assert torch.equal(sparrow.generate(model, drafter, **inputs, **noise).sequences, want)


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_are_read_as_tensors(tiny, folder_of, tmp_path, kind):
    """The same drafter from pytorch_model.bin; a pickle that holds code is refused, and the code not run."""
    target, folder = Target(tiny("llava_onevision")), TargetFolder(folder_of("llava_onevision"))
    made = [make(tmp_path / name, kind, target, pickled=name == "b") for name in "ab"]
    assert made[0].keys() == made[1].keys()
    one, other = (import_drafter(tmp_path / name, folder)[1] for name in "ab")
    assert one.config == other.config
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/never-made-by-a-test", "w"))


@pytest.mark.parametrize("what", [{"x": Evil()}, {"x": 3}, [torch.zeros(1)]])
def test_other_pickles_are_refused(tiny, folder_of, tmp_path, what):
    make(tmp_path, "MSD", Target(tiny("llava_onevision")), pickled=True)
    torch.save(what, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model.bin is refused: it (holds other things than|must hold) tensors"):
        import_drafter(tmp_path, TargetFolder(folder_of("llava_onevision")))


def drop(name):
    return lambda w: w.pop(name)


def put(name, *shape):
    return lambda w: w.update({name: torch.zeros(shape)})


def other_embedding(w):
    w["embed_tokens.weight"][7] += 1.0


def other_map(w):
    w["d2t"][-1] += 1


REFUSED = [
    ("MSD", drop("fc.weight"), "none of the layouts that can be imported: EAGLE or MSD, ViSpec, EAGLE-3"),
    ("MSD", drop("layers.0.self_attn.k_proj.bias"), "the weight layers.0.self_attn.k_proj.bias is missing"),
    ("MSD", put("layers.0.input_layernorm.weight", 64), "no drafter here has these weights: layers.0.input_layernorm"),
    ("MSD", put("layers.0.self_attn.o_proj.bias", 64), "these weights: layers.0.self_attn.o_proj.bias"),
    ("MSD", put("fc.weight", 64, 192), r"fc.weight must be \[64, 128\], got \[64, 192\]"),
    ("MSD", put("embed_tokens.weight", 301, 64), "made for another target: embed_tokens.weight has 301 rows"),
    ("MSD", put("embed_tokens.weight", 300, 32), r"embed_tokens.weight must be \[any, 64\], got \[300, 32\]"),
    ("MSD", other_embedding, "another target: row 7 of embed_tokens.weight is not the target's"),
    ("MSD", put("layers.0.self_attn.rotary_emb.inv_freq", 8), "rotary_emb.inv_freq is not what rope_theta=5000 gives"),
    ("ViSpec", put("imadpt.q", 3, 4, 16), r"imadpt.q must be \[2, 4, 16\], got \[3, 4, 16\]"),
    ("ViSpec", drop("img_fc.weight"), "the weight img_fc.weight is missing"),
    ("EAGLE-3", put("midlayer.self_attn.q_norm.weight", 16), "these weights: midlayer.self_attn.q_norm.weight"),
    ("EAGLE-3", put("lm_head.weight", 100, 64), r"d2t must be \[100\], got \[120\]"),
    ("EAGLE-3", other_map, "d2t and t2d name different tokens"),
]


@pytest.mark.parametrize(("kind", "change", "message"), REFUSED, ids=[m[:40] for _, _, m in REFUSED])
def test_weights_are_refused_by_name(tiny, folder_of, tmp_path, kind, change, message):
    make(tmp_path, kind, Target(tiny("llava_onevision")), change=change)
    with pytest.raises(ValueError, match=message):
        import_drafter(tmp_path, TargetFolder(folder_of("llava_onevision")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers must be 1, got 2"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu'"),
        ({"hidden_size": 32}, "made for another target: hidden_size is 32, the target's 64"),
        ({"target_hidden_size": 128}, "made for another target: target_hidden_size is 128, the target's 64"),
        ({"model_type": "drafter"}, "model_type must be one that transformers knows, got 'drafter'"),
        ({"norm_output": True}, "norm_output must be false, got True"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state must be true"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling type must be default, got 'linear'"),
    ],
)
def test_configs_are_refused_by_name(tiny, folder_of, tmp_path, config, message):
    make(tmp_path, "EAGLE-3", Target(tiny("llava_onevision")), config=config)
    with pytest.raises(ValueError, match=message):
        import_drafter(tmp_path, TargetFolder(folder_of("llava_onevision")))


@pytest.mark.parametrize(
    ("config", "taps"),
    [
        ({}, (2, 2, 1)),  # of 4 layers
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}}, (1, 2, 3)),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}, (0, 1, 2)),
    ],
)
def test_which_layers_are_tapped(tiny, folder_of, tmp_path, config, taps):
    make(tmp_path, "EAGLE-3", Target(tiny("llava_onevision")), config=config)
    _, drafter = import_drafter(tmp_path, TargetFolder(folder_of("llava_onevision")))
    assert drafter.config.state_layers == taps


def test_mrope_numbers_are_the_targets(tiny, folder_of, tmp_path):
    make(tmp_path, "EAGLE-3", Target(tiny("qwen2_5_vl")), config=MROPE)
    folder = TargetFolder(folder_of("qwen2_5_vl"))
    kind, drafter = import_drafter(tmp_path, folder)
    assert (kind, drafter.config.positions, drafter.config.visual) == ("EAGLE-3", "target", "none")
    with pytest.raises(ValueError, match="M-RoPE: with the video seen give positions=sequence"):
        import_drafter(tmp_path, folder, vata=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_says_what_its_model_is(tiny, folder_of, family):
    target, folder = Target(tiny(family)), TargetFolder(folder_of(family))
    assert folder.fingerprint() == target.fingerprint()
    assert torch.equal(folder.embedding, target.embedding) and folder.dtype() == torch.float32


def test_sharded_checkpoints(tiny, folder_of, tmp_path):
    target = Target(tiny("llava_onevision"))
    weights = make(tmp_path, "MSD", target)
    whole = import_drafter(tmp_path, TargetFolder(folder_of("llava_onevision")))[1]
    names = sorted(weights)
    parts = {f"model-{i}.safetensors": names[i::2] for i in range(2)}
    (tmp_path / "model.safetensors").unlink()
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, tmp_path / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = import_drafter(tmp_path, TargetFolder(folder_of("llava_onevision")))[1]
    assert all(torch.equal(v, sharded.state_dict()[k]) for k, v in whole.state_dict().items())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape("model-1.safetensors, which is missing")):
        import_drafter(tmp_path, TargetFolder(folder_of("llava_onevision")))
