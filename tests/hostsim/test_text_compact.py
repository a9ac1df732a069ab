import pytest
import torch

from sparrow_ext.ops import text_compact as op
from tests.ops.test_text_compact import assert_same, prompts


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 257, 700])
def test_equals_reference(sim, rows, density):
    is_text, seq_lens = prompts(3, rows, density, seed=rows)
    seq_lens[0] = rows
    most = max(int(row[:n].sum()) for row, n in zip(is_text, seq_lens.tolist(), strict=True))
    for max_text in (most, most + 70):
        assert_same(sim.ops.text_compact(is_text, seq_lens, max_text), op.reference(is_text, seq_lens, max_text))


def test_longer_than_a_block_takes_at_once(sim):
    is_text = torch.zeros(1, 9000, dtype=torch.bool)
    is_text[0, :100] = is_text[0, 8100:] = True
    seq_lens = torch.tensor([8999], dtype=torch.int32)
    assert_same(sim.ops.text_compact(is_text, seq_lens, 1000), op.reference(is_text, seq_lens, 1000))


@pytest.mark.parametrize("max_text", [0, 1, 64])
def test_rows_that_do_not_fit_are_counted_but_not_written(sim, max_text):
    is_text = torch.ones(2, 130, dtype=torch.bool)
    index, count = sim.ops.text_compact(is_text, torch.tensor([3, 130], dtype=torch.int32), max_text)
    assert count.tolist() == [3, 130] and torch.equal(index[1], torch.arange(max_text, dtype=torch.int32))


def test_lengths_are_clamped_and_views_work(sim):
    wide = torch.zeros(2, 90, dtype=torch.bool)
    wide[:, 7:48] = True
    index, count = sim.ops.text_compact(wide[:, 10:50], torch.tensor([-4, 99], dtype=torch.int32), 40)
    assert count.tolist() == [0, 38] and index[1, :39].tolist() == [*range(38), -1] and bool((index[0] == -1).all())


def test_empty_batch(sim):
    index, count = sim.ops.text_compact(torch.zeros(0, 9, dtype=torch.bool), torch.zeros(0, dtype=torch.int32), 4)
    assert index.shape == (0, 4) and count.shape == (0,)
