import pytest
import torch

from sparrow_ext.ops import add_rms_norm as op


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize(
    ("rows", "width", "dtype"),
    [(1, 192, torch.float32), (26, 192, torch.float32), (1, 3584, torch.bfloat16), (26, 3584, torch.bfloat16)],
)
def test_add_rms_norm(benchmark, rows, width, dtype, impl):
    benchmark.group = f"add_rms_norm rows={rows} E={width} {dtype}"
    g = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(1, rows, width, generator=g).to(dtype) for _ in range(2))
    benchmark(op.add_rms_norm if impl == "sparrow" else op.eager, x, torch.ones(width, dtype=dtype), 1e-6, residual)
