import pytest
import torch

from sparrow_ext.ops import text_compact as op


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize(
    ("kind", "batch", "rows"), [("video", 1, 600), ("video", 1, 26000), ("random", 1, 26000), ("video", 3, 26000)]
)
def test_text_compact(benchmark, kind, batch, rows, impl):
    benchmark.group = f"text_compact {kind} B={batch} S={rows}"
    if kind == "video":
        is_text = torch.zeros(batch, rows, dtype=torch.bool)
        is_text[:, :60] = is_text[:, -400:] = True
    else:
        is_text = torch.rand(batch, rows, generator=torch.Generator().manual_seed(0)) < 0.5
    seq_lens = torch.full((batch,), rows, dtype=torch.int32)
    benchmark(op.text_compact if impl == "sparrow" else op.eager, is_text, seq_lens, int(is_text[0].sum()))
