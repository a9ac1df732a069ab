"""What differs between releases of transformers, and the range of them that is named."""

import importlib.metadata
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

import sparrow
from sparrow.cli import doctor
from sparrow.targets import versions  # importing some models, transformers replaces its own module
from sparrow.targets.adapter import Target
from sparrow.targets.tiny import tiny_target
from sparrow.targets.versions import cache_argument, outside_tested, warn_outside_tested
from tests.videos import FAMILIES, sample_inputs


def older(past_key_values=None, **kwargs): ...


def newer(cache=None, past_key_values=None, **kwargs): ...


def neither(input_ids, **kwargs): ...


def test_cache_argument_is_what_forward_takes():
    assert cache_argument(SimpleNamespace(forward=older)) == "past_key_values"
    assert cache_argument(SimpleNamespace(forward=newer)) == "cache"
    with pytest.raises(TypeError, match=r"one of cache, past_key_values; SimpleNamespace.forward takes input_ids, kw"):
        cache_argument(SimpleNamespace(forward=neither))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_is_taken_under_that_name(family):
    """A pass over 3 tokens and one more over its cache is a pass over 4."""
    model = tiny_target(family)  # its own: a generate before would leave its M-RoPE offset
    target, ids = Target(model), sample_inputs(family, videos=0)["input_ids"][:, :4]
    cache = target.new_cache(4)
    for part in (ids[:, :3], ids[:, 3:]):
        out = model(input_ids=part, use_cache=True, **{target.cache_argument: cache})
    assert cache.get_seq_length() == 4
    assert (out.logits[:, -1] - model(input_ids=ids).logits[:, -1]).abs().max() < 1e-4


def test_output_has_the_cache_under_both_names(tiny):
    out = sparrow.generate(tiny("qwen2_5_vl"), None, **sample_inputs("qwen2_5_vl"), max_new_tokens=2)
    assert out.cache is out.past_key_values and out.cache.get_seq_length() == out.sequences.shape[1] - 1


@pytest.mark.parametrize(
    ("name", "release", "inside"),
    [
        ("transformers", "5.17.0", False),
        ("transformers", "5.18.0", True),
        ("transformers", "5.24.9", True),
        ("transformers", "5.25.0.dev0", False),
        ("transformers", "5.25.0", False),
        ("torch", "2.9.1+cu128", False),
        ("torch", "2.10.0", True),
        ("torch", "2.13.0+cpu", True),
        ("torch", "2.16.0", False),
    ],
)
def test_tested_range(name, release, inside):
    text = outside_tested(name, release)
    assert (text is None) == inside
    assert inside or text.startswith(f"{name} {release} is outside the range sparrow is tested with, {name} >=")


def test_one_warning_outside_the_range(monkeypatch):
    monkeypatch.setattr(versions.transformers, "__version__", "5.24.0")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_outside_tested()
    monkeypatch.setattr(versions.transformers, "__version__", "6.0.0")
    monkeypatch.setattr(torch, "__version__", "3.0.0")
    with pytest.warns(
        UserWarning, match=r"torch 3.0.0 .* torch >=2.10,<\S+; transformers 6.0.0 .* >=5.18,<\S+$"
    ) as seen:
        warn_outside_tested()
    assert len(seen) == 1


def test_importing_the_adapter_warns():
    code = "import transformers; transformers.__version__ = '6.0.0'; import sparrow.targets.adapter"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.count("UserWarning: ") == 1 and "transformers 6.0.0 is outside the range" in ended.stderr


def test_doctor_says_it_too(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.0.0")
    assert doctor._version("transformers") == outside_tested("transformers", "6.0.0")
    assert doctor._version("rich") == "6.0.0"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.24.0")
    assert doctor._version("transformers") == "5.24.0"
