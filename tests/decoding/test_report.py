"""What `print(sparrow.compare(...))` shows."""

import pytest
import torch

import sparrow
from sparrow.decoding.compare import Comparison, Mismatch
from sparrow.decoding.generate import GenerateOutput
from sparrow.decoding.stats import DecodeStats

FAR, NEAR = Mismatch(3, 7, 9, 0.5, 0.5, 20.0), Mismatch(5, 7, 9, 1e-5, 1e-5, 20.0)


def comparison(mismatches: list[Mismatch], ours: torch.Tensor, rounds: list[int]) -> Comparison:
    stats = DecodeStats(tree="8-4-2", emitted=rounds)
    output = GenerateOutput(ours, stats, None)  # type: ignore[arg-type]
    return Comparison(torch.arange(12)[None], ours, 2, mismatches, output, 1.0, ("ab", "cd"))


def test_identical():
    lines = str(comparison([], torch.arange(12)[None], [4, 2, 3])).splitlines()
    assert lines[0] == "identical to transformers' generate: yes"
    assert [line.split("  ")[-1].strip() for line in lines[1:]] == [
        "10, transformers 10", "ab, transformers cd", "3 after the prompt, 3.00 tokens each, tree 8-4-2",
    ]  # fmt: skip


@pytest.mark.parametrize(("found", "kind"), [([NEAR], "near ties only: lossless"), ([FAR, NEAR], "not lossless")])
def test_mismatches(found, kind):
    text = comparison(found, torch.arange(1, 12)[None], []).report()
    assert "transformers' generate: no" in text and "new tokens       9, transformers 10" in text
    assert f"mismatches       {len(found)}, match rate {1 - len(found) / 10:.4f}; {kind}" in text
    assert text.splitlines()[-1] == "    token 5: 9 for 7, logit margin 1e-05, a near tie" and "passes" not in text
    assert ("token 3: 9 for 7, logit margin 0.5" in text) == (FAR in found)


def test_only_the_first_are_shown():
    lines = comparison([FAR] * 8, torch.arange(12)[None], []).report().splitlines()
    assert sum("token 3" in line for line in lines) == 5 and lines[-1] == "    and 3 more"


def test_takes_what_generate_takes(tiny):
    """Plain decoding and processors, too; a streamer hears one run."""
    heard = []

    class Streamer:
        put = staticmethod(lambda value: heard.append(value.numel()))
        end = staticmethod(lambda: heard.append(-1))

    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    found = sparrow.compare(
        tiny("qwen2_5_vl"), None, **inputs, max_new_tokens=6, repetition_penalty=1.3, eos_token_id=None,
        streamer=Streamer(),
    )  # fmt: skip
    assert found.identical and heard == [3, *[1] * 6, -1]
    assert "6 , transformers" not in str(found) and "new tokens       6, transformers 6" in str(found)
