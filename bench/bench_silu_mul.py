import pytest
import torch

from sparrow_ext.ops import silu_mul as op


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize(
    ("rows", "width", "dtype"),
    [(1, 512, torch.float32), (26, 512, torch.float32), (1, 18944, torch.bfloat16), (26, 18944, torch.bfloat16)],
)
def test_silu_mul(benchmark, rows, width, dtype, impl):
    benchmark.group = f"silu_mul rows={rows} F={width} {dtype}"
    g = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(1, rows, width, generator=g).to(dtype) for _ in range(2))
    benchmark(op.silu_mul if impl == "sparrow" else op.eager, gate, up)
