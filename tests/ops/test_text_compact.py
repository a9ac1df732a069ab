import pytest
import torch

from sparrow_ext.ops import text_compact as op
from tests.ops.checks import available_isas, compiled, cpu_isa

INT = torch.int32


def prompts(batch: int, rows: int, density: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    is_text = torch.rand(batch, rows, generator=generator) < density
    return is_text, torch.randint(0, rows + 1, (batch,), generator=generator, dtype=INT)


def assert_same(got, want):
    for ours, expected in zip(got, want, strict=True):
        assert ours.dtype == expected.dtype == INT and torch.equal(ours, expected)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 7, 63, 64, 65, 127, 128, 129, 700])
def test_equals_reference(rows, density, isa):
    is_text, seq_lens = prompts(3, rows, density, seed=rows)
    seq_lens[0] = rows
    most = max(int(row[:n].sum()) for row, n in zip(is_text, seq_lens.tolist(), strict=True))
    for max_text in (most, most + 1, most + 70):
        with cpu_isa(isa):
            got = op.text_compact(is_text, seq_lens, max_text)
        assert_same(got, op.reference(is_text, seq_lens, max_text))
        assert_same(op.eager(is_text, seq_lens, max_text), got)


@pytest.mark.parametrize("isa", available_isas())
def test_runs_as_in_a_video_prompt(isa):
    is_text = torch.zeros(1, 5000, dtype=torch.bool)
    is_text[0, :100] = is_text[0, 4321:] = True
    with cpu_isa(isa):
        index, count = op.text_compact(is_text, torch.tensor([5000], dtype=INT), 779)
    assert count.item() == 779 and torch.equal(
        index[0], torch.cat([torch.arange(100), torch.arange(4321, 5000)]).to(INT)
    )


def test_rows_are_bit_equal_to_batch_of_one_and_views_work():
    is_text, seq_lens = prompts(3, 300, 0.4)
    wide = torch.ones(3, 400, dtype=torch.bool)
    wide[:, 50:350] = is_text
    together = op.text_compact(wide[:, 50:350], seq_lens, 300)
    for b in range(3):
        rows = slice(b, b + 1)
        assert_same(op.text_compact(is_text[rows], seq_lens[rows], 300), [t[rows] for t in together])


def test_empty():
    index, count = op.text_compact(torch.zeros(0, 9, dtype=torch.bool), torch.zeros(0, dtype=INT), 4)
    assert index.shape == (0, 4) and count.shape == (0,)
    index, count = op.text_compact(torch.zeros(2, 9, dtype=torch.bool), torch.full((2,), 9, dtype=INT), 0)
    assert index.shape == (2, 0) and count.tolist() == [0, 0]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("max_text", [0, 1, 63, 64, 129])
def test_too_many_text_rows_raise(max_text, isa):
    is_text = torch.ones(2, 130, dtype=torch.bool)
    with cpu_isa(isa), pytest.raises(RuntimeError, match=f"max_text = {max_text} .* sequence 1 has 130"):
        op.text_compact(is_text, torch.tensor([0, 130], dtype=INT), max_text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_text": torch.zeros(1, 8)}, "is_text must be bool, got float32"),
        ({"seq_lens": torch.zeros(1, dtype=torch.int64)}, "seq_lens must be int32, got int64"),
        ({"is_text": torch.zeros(8, dtype=torch.bool)}, "is_text must have 2 dimensions"),
        ({"seq_lens": torch.zeros(2, dtype=INT)}, r"dimension 0 of seq_lens must be 1 \(B\)"),
        ({"is_text": torch.zeros(1, 16, dtype=torch.bool)[:, ::2]}, "is_text must be dense in its last dimension"),
        ({"max_text": -1}, r"max_text must lie in \[0, 2147483647\], got -1"),
        ({"seq_lens": torch.tensor([9], dtype=INT)}, r"seq_lens\[0\] must lie in \[0, 8\], got 9"),
        ({"seq_lens": torch.tensor([-1], dtype=INT)}, r"seq_lens\[0\] must lie in \[0, 8\], got -1"),
    ],
)
def test_bad_arguments_raise(change, message):
    arguments = {"is_text": torch.zeros(1, 8, dtype=torch.bool), "seq_lens": torch.zeros(1, dtype=INT), "max_text": 8}
    with pytest.raises(RuntimeError, match="text_compact: .*" + message):
        op.text_compact(**(arguments | change))


def test_opcheck_and_compile():
    is_text, seq_lens = prompts(2, 90, 0.5)
    torch.library.opcheck(torch.ops.sparrow.text_compact, (is_text, seq_lens, 90))
    assert_same(compiled(op.text_compact, is_text, seq_lens, 90), op.reference(is_text, seq_lens, 90))
