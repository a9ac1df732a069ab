"""What callers ask an adapter for before they decode."""

import copy

import pytest
import torch

from sparrow.targets.adapter import Target
from tests.videos import FAMILIES, sample_inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs(tiny, dtype):
    """Pixels in the model's dtype; times, masks and what is no tensor as they are."""
    target = Target(tiny("qwen2_5_vl", 0, None, dtype))
    inputs = sample_inputs("qwen2_5_vl") | {"note": "text"}
    moved = target.inputs(inputs)
    assert moved.keys() == inputs.keys() and moved["note"] == "text"
    kinds = {name: value.dtype for name, value in moved.items() if name != "note"}
    assert kinds == {
        "input_ids": torch.int64, "attention_mask": torch.int64, "mm_token_type_ids": torch.int32,
        "pixel_values_videos": dtype, "video_grid_thw": torch.int64, "second_per_grid_ts": torch.float32,
    }  # fmt: skip
    assert all(value.device == target.device for value in moved.values() if isinstance(value, torch.Tensor))
    torch.testing.assert_close(moved["pixel_values_videos"], inputs["pixel_values_videos"].to(dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_is_text(tiny, family):
    target, ids = Target(tiny(family)), sample_inputs(family, videos=2)["input_ids"]
    visual = (ids == 291) | (ids == 290)
    assert torch.equal(target.is_text(ids), ~visual) and torch.equal(target.is_text(ids[0]), ~visual[0])
    assert 0 < int(visual.sum()) < ids.numel()


def test_a_target_is_the_same_in_every_dtype(tiny):
    """A drafter made in float32 serves the same checkpoint loaded in 16 bits, and no other checkpoint."""
    model = tiny("qwen2_5_vl")
    made = Target(model).fingerprint()
    assert made != Target(tiny("qwen2_5_vl", 1)).fingerprint()
    for dtype in (torch.bfloat16, torch.float16):
        assert Target(copy.deepcopy(model).to(dtype)).fingerprint() == made
