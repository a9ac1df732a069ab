import pytest
import torch

from sparrow_ext.ops import gather_rows as op

SHAPES = {  # B, S, rows gathered, E, dtype
    "miniature one row": (1, 64, 1, 256, torch.float32),
    "miniature prefill": (1, 600, 200, 256, torch.float32),
    "7B round": (1, 64, 5, 3584, torch.bfloat16),
    "7B prefill": (1, 8000, 1000, 3584, torch.bfloat16),
    "7B prefill B=3": (3, 3000, 400, 3584, torch.bfloat16),
}


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gather_rows(benchmark, shape, impl):
    benchmark.group = f"gather_rows {shape}"
    batch, rows, count, dim, dtype = SHAPES[shape]
    src = torch.zeros(batch, rows, dim, dtype=dtype)
    index = torch.linspace(0, rows - 1, count).to(torch.int32).repeat(batch, 1)
    counts = torch.full((batch,), count, dtype=torch.int32)
    dst = torch.zeros(batch, count, dim, dtype=dtype)
    start = torch.zeros(batch, dtype=torch.int32)
    benchmark(op.gather_rows if impl == "sparrow" else op.eager, src, index, counts, dst, start)
