"""What differs between releases of transformers, and the range of them that is named."""

from types import SimpleNamespace

import pytest

import sparrow
from sparrow.targets.adapter import Target
from sparrow.targets.versions import cache_argument
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
def test_the_cache_is_taken_under_that_name(tiny, family):
    """A pass over 3 tokens and one more over its cache is a pass over 4."""
    model = tiny(family)
    target, ids = Target(model), sample_inputs(family, videos=0)["input_ids"][:, :4]
    cache = target.new_cache(4)
    for part in (ids[:, :3], ids[:, 3:]):
        out = model(input_ids=part, use_cache=True, **{target.cache_argument: cache})
    assert cache.get_seq_length() == 4
    assert (out.logits[:, -1] - model(input_ids=ids).logits[:, -1]).abs().max() < 1e-4


def test_output_has_the_cache_under_both_names(tiny):
    out = sparrow.generate(tiny("qwen2_5_vl"), None, **sample_inputs("qwen2_5_vl"), max_new_tokens=2)
    assert out.cache is out.past_key_values and out.cache.get_seq_length() == out.sequences.shape[1] - 1
