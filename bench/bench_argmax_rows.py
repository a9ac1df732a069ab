import pytest
import torch

from sparrow_ext.ops import argmax_rows as op


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize(
    ("rows", "vocab", "dtype"),
    [(1, 8192, torch.float32), (26, 8192, torch.float32), (1, 152064, torch.bfloat16), (26, 152064, torch.bfloat16)],
)
def test_argmax_rows(benchmark, rows, vocab, dtype, impl):
    benchmark.group = f"argmax_rows rows={rows} V={vocab} {dtype}"
    logits = (torch.randn(1, rows, vocab, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    benchmark(op.argmax_rows if impl == "sparrow" else op.eager, logits)
