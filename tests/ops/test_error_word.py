"""The error word: what it says, that the CPU operators leave it alone, and that the loop reads it."""

import pytest
import torch

import sparrow_ext
from sparrow.decoding.loop import read
from sparrow.drafters.protocol import DecodeState
from sparrow.targets.cache import TargetCache
from sparrow.tree import TreeConfig


def test_a_clear_word_raises_nothing():
    word = sparrow_ext.error_word("cpu")
    assert word.dtype == torch.int32 and word.tolist() == [0]
    sparrow_ext.raise_for_error(0)


@pytest.mark.parametrize(
    ("bits", "words"), [(1, ["parent"]), (2, ["count"]), (5, ["parent", "index"]), (64, ["unknown bits 0x40"])]
)
def test_every_bit_is_named(bits, words):
    with pytest.raises(RuntimeError, match="a CUDA operator got bad values: .*" + ".*".join(words)):
        sparrow_ext.raise_for_error(bits)


def test_cpu_operators_raise_and_leave_the_word_alone():
    word, bad = torch.tensor([8], dtype=torch.int32), torch.tensor([[-1, 4]], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"parent\[0\]\[1\] must lie in"):
        sparrow_ext.tree_mask(bad, word)
    sparrow_ext.tree_mask(torch.tensor([[-1, 0]], dtype=torch.int32), word)
    assert word.item() == 8
    for wrong in (torch.zeros(1), torch.zeros(2, dtype=torch.int32)):
        with pytest.raises(RuntimeError, match=r"tree_mask: .*error"):
            sparrow_ext.tree_mask(bad, wrong)


def test_the_rounds_synchronisation_raises():
    cache, two = TargetCache(1, 9), torch.tensor([3, 4])
    state = DecodeState.after_prompt(cache, two, two, two, None, None, two, TreeConfig(2, 2, 1), torch.empty(0))
    state.report.copy_(torch.tensor([[0, 2, 7, 8, -1], [0, 1, 9, -1, -1]]))
    cache.set_rows([0, 0])
    assert read(state) == [[7, 8], [9]] and cache.rows == [2, 1] and cache.get_seq_length() == 2
    state.report[:, 0] = 4
    with pytest.raises(RuntimeError, match="bad values: an index out of range"):
        read(state)
