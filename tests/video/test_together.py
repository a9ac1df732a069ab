"""Prompts joined into a batch. (That each is decoded as if alone: tests/decoding/test_batches.py.)"""

import pytest
import torch

from sparrow.video import together
from tests.videos import sample_inputs


def test_left_padding_and_order():
    short, long = sample_inputs("qwen2_5_vl", videos=0, text=2), sample_inputs("qwen2_5_vl", videos=2)
    made = together([short, long, short], 77)
    p, n = long["input_ids"].shape[1], short["input_ids"].shape[1]
    assert made["input_ids"].shape == (3, p) and (made["input_ids"][0, : p - n] == 77).all()
    assert torch.equal(made["input_ids"][2, p - n :], short["input_ids"][0])
    assert made["attention_mask"].sum(1).tolist() == [n, p, n]
    assert made["mm_token_type_ids"][0].sum() == 0 and torch.equal(
        made["mm_token_type_ids"][1], long["mm_token_type_ids"][0]
    )
    both = together([long, sample_inputs("qwen2_5_vl", seed=3)], 77)
    assert torch.equal(both["pixel_values_videos"][: len(long["pixel_values_videos"])], long["pixel_values_videos"])
    assert len(both["video_grid_thw"]) == 3


def test_one_is_itself():
    one = sample_inputs("internvl")
    assert all(torch.equal(value, one[name]) for name, value in together([one], 0).items())


def test_what_is_refused():
    one = sample_inputs("internvl")
    with pytest.raises(ValueError, match="prompts must hold one prompt or more, got none"):
        together([], 0)
    with pytest.raises(ValueError, match=r"input_ids \[1, P\], got \[\[2, 5\]\]"):
        together([{"input_ids": torch.ones(2, 5, dtype=torch.int64)}], 0)
    other = {**one, "pixel_values": torch.zeros(4, 3, 28, 28)}
    with pytest.raises(
        ValueError, match=r"pixel_values of these prompts cannot be joined, got shapes \[\[4, 3, 56, 56\]"
    ):
        together([one, other], 0)
