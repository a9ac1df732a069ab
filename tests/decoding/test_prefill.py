"""Prefill by pieces, and on the rows that matter: the same tokens and drafts; what is run; what is lossy, and how."""

import contextlib

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import sparrow
from sparrow.decoding.session import Session
from sparrow.miniature.layer_cut import layer_cut
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import tiny_target
from tests.decoding.talk import Characters, frames_of, settings_of, whole
from tests.decoding.test_batches import PAD, alone, new_tokens, prompts_of, together
from tests.drafters.visual_cases import random_drafter
from tests.videos import FAMILIES, sample_inputs

NEW = 8


def decode(model, drafter, inputs, **options):
    return sparrow.generate(model, drafter, **inputs, max_new_tokens=NEW, eos_token_id=None, **options)


@contextlib.contextmanager
def rows_run(model):
    """{what: rows of each of its passes}: the decoder, its last MLP, its last keys, and the vision tower."""
    decoder, vision = model.model.language_model, getattr(model.model, "visual", None)
    last, seen = decoder.layers[-1], {"pieces": [], "mlp": [], "keys": [], "vision": []}

    def watch(name, module, kwargs=False):
        def see(module, args, kwargs):
            seen[name].append((args[0] if args else kwargs.get("inputs_embeds", kwargs.get("pixel_values"))).shape[1])

        return module.register_forward_pre_hook(see, with_kwargs=True)

    modules = {"pieces": decoder.layers[0], "mlp": last.mlp, "keys": last.self_attn.k_proj}
    hooks = [watch(name, module) for name, module in modules.items()]
    hooks.append(watch("vision", vision or model.model.vision_tower))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_by_pieces(tiny, greedy, family):
    """Tokens of transformers' generate, drafts of a prefill at once; videos and images are encoded once."""
    model, inputs = tiny(family), sample_inputs(family, videos=2, images=2)
    want, length = greedy(model, inputs, NEW), inputs["input_ids"].shape[1]
    drafter = sparrow.SparrowDrafter.from_target(Target(model), positions="target")
    with rows_run(model) as seen:
        at_once = decode(model, drafter, inputs)
    encoded = len(seen["vision"])
    for chunk in (1 if family == FAMILIES[0] else 6, length - 1, length + 1):
        with rows_run(model) as seen:
            out = decode(model, drafter, inputs, prefill_chunk_size=chunk)
        assert torch.equal(out.sequences, want) and out.stats.accepted == at_once.stats.accepted
        pieces = seen["pieces"][: -(-length // chunk)]
        assert sum(pieces) == length and max(pieces) == min(chunk, length)
        assert len(seen["vision"]) == encoded
        torch.testing.assert_close(
            out.cache.buffer[..., :length, :], at_once.cache.buffer[..., :length, :], atol=1e-4, rtol=1e-4
        )
    for other in (None, sparrow.SpecVLM(keep=0.5), random_drafter(Target(model), "MSD")):
        assert torch.equal(decode(model, other, inputs, prefill_chunk_size=5).sequences, want)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "other"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_runs_text(tiny, greedy, family, attention):
    """...and the row before each, but keys and values of all; where attention takes no mask of rows, all."""
    AttentionInterface.register("other", sdpa_attention_forward)
    AttentionMaskInterface.register("other", lambda *args, **kwargs: None)
    model, inputs = tiny(family), sample_inputs(family, videos=2)
    target = Target(model)
    want, drafter = greedy(model, inputs, NEW), sparrow.SparrowDrafter.from_target(target)
    text = target.is_text(inputs["input_ids"])[0]
    wanted = int((text | torch.cat([text[1:], text[:1]])).sum())
    before = target.config._attn_implementation
    try:
        model.set_attn_implementation({"text_config": attention})
        with rows_run(model) as seen:
            out = decode(model, drafter, inputs)
        with rows_run(model) as of_all:
            rival = decode(model, random_drafter(target, "MSD"), inputs)
    finally:
        model.set_attn_implementation({"text_config": before})
    assert torch.equal(out.sequences, want) and torch.equal(rival.sequences, want)
    assert seen["mlp"][0] == (len(text) if attention == "other" else wanted) < len(text) + 1
    assert seen["keys"][0] == len(text)
    assert of_all["mlp"][0] == len(text), "a drafter of visual states needs them all"


def test_states_are_those_of_all_rows(tiny, monkeypatch):
    """A drafter gets the same of a pass that runs everything."""
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl", videos=2)
    for layers in ({}, {"hidden_layer": 2}, {"hidden_layer": 0, "fused_layers": (2, 4)}):
        drafter, kept = sparrow.SparrowDrafter.from_target(Target(model), **layers), []
        for options in ({"prefill_chunk_size": 6}, {}, {"all": True}):
            store = sparrow.PrefixStore(1 << 24)
            with monkeypatch.context() as patch:
                if options.pop("all", False):
                    patch.setattr("sparrow.drafters.text.TextDrafter.text_states", False)
                decode(model, drafter, inputs, prefixes=store, **options)
            kept.append(store._prefixes[0].draft["keys"])
        for rows in kept[1:]:
            torch.testing.assert_close(rows, kept[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_by_pieces(tiny, family):
    model, prompts = tiny(family), prompts_of(family)
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    want = alone(model, prompts, max_new_tokens=NEW, eos_token_id=None, do_sample=False)
    out = decode(model, drafter, together(prompts), pad_token_id=PAD, prefill_chunk_size=9)
    assert new_tokens(out.sequences, prompts) == new_tokens(want, prompts)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_conversations_by_pieces(tiny, greedy, family):
    """A turn runs its new rows by pieces, from the place on that was run before."""
    model, tokenizer = tiny(family), Characters(family)
    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    session = Session(
        model, drafter, settings_of(family), tokenizer, max_new_tokens=NEW, eos_token_id=None, prefill_chunk_size=4
    )
    for text, clip in (("what?", frames_of(family, 0)), ("and?", None), ("this?", frames_of(family, 1))):
        reply = session.send(text, clip)
        assert torch.equal(reply.output.sequences, greedy(model, whole(session), NEW))
    assert reply.stats.reused_tokens > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_is_a_cut(tiny, family):
    """The tokens are those of whole passes in which text does not see the video from that layer on."""
    model, inputs = tiny(family), sample_inputs(family, videos=2)
    target = Target(model)
    drafter = sparrow.SparrowDrafter.from_target(target)
    text, length = target.is_text(inputs["input_ids"])[0], inputs["input_ids"].shape[1]
    for layer in (2, 3):
        ids, rest = inputs["input_ids"], {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        with layer_cut(model, layer), torch.no_grad():
            for _ in range(NEW):
                types = {k: torch.nn.functional.pad(v, (0, ids.shape[1] - length)) for k, v in rest.items()
                         if k == "mm_token_type_ids"}  # fmt: skip
                ids = torch.cat([ids, model(input_ids=ids, **rest | types).logits[:, -1:].argmax(-1)], dim=1)
        for one, chunk in ((None, None), (drafter, None), (drafter, 5)):
            with rows_run(model) as seen:
                out = decode(model, one, inputs, visual_drop_layer=layer, prefill_chunk_size=chunk)
            assert torch.equal(out.sequences, ids)
            upper, visual = out.cache.upper, int((~text).sum())
            assert upper.rows == [out.cache.rows[0] - visual] and upper.lengths.tolist() == upper.rows
            assert upper.buffer.shape[4] == out.cache.buffer.shape[4] - visual
            assert chunk or seen["mlp"][0] == int(text.sum())
        assert not torch.equal(decode(model, None, inputs).sequences, ids), "else this shows nothing"
        sampled = [
            decode(model, d, inputs, visual_drop_layer=layer, do_sample=True, seed=3).sequences for d in (None, drafter)
        ]
        assert torch.equal(*sampled)


def test_what_is_refused(tiny):
    model, inputs = tiny("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    for chunk in (0, -1, 2.5, True, "8"):
        with pytest.raises(ValueError, match="prefill_chunk_size must be a positive"):
            decode(model, None, inputs, prefill_chunk_size=chunk)
    for layer in (0, 4, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"visual_drop_layer must be a layer in \[1, 3\], got"):
            decode(model, None, inputs, visual_drop_layer=layer)
    with pytest.raises(ValueError, match=r"in \[2, 3\], got 1"):  # its first two layers add visual features
        decode(tiny("qwen3_vl"), None, sample_inputs("qwen3_vl"), visual_drop_layer=1)
    for drafter in (sparrow.SpecVLM(), random_drafter(Target(model), "MSD")):
        with pytest.raises(ValueError, match="visual_drop_layer cannot go with"):
            decode(model, drafter, inputs, visual_drop_layer=2)
    with pytest.raises(ValueError, match="visual_drop_layer cannot go with sessions or prefixes"):
        decode(model, None, inputs, visual_drop_layer=2, prefixes=sparrow.PrefixStore(1 << 20))
    with pytest.raises(ValueError, match="visual_drop_layer takes one sequence without padding"):
        decode(model, None, together([inputs, inputs]), visual_drop_layer=2)


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 3}, {}, {"visual_drop_layer": 2}])
def test_the_model_is_left_as_it_was(options):
    """Also where a pass fails halfway."""
    model, inputs = tiny_target("qwen2_5_vl"), sample_inputs("qwen2_5_vl")
    layers = model.model.language_model.layers

    def fails(module, args):
        raise RuntimeError("halfway")

    for broken in (False, True):
        hook = layers[-1].mlp.register_forward_pre_hook(fails) if broken else None
        with pytest.raises(RuntimeError, match="halfway") if broken else contextlib.nullcontext():
            decode(model, None, inputs, **options)
        if hook is not None:
            hook.remove()
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
