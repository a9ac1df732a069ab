import pytest
import torch

from sparrow_ext.ops import topk_lse as op


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize("vocab", [8192, 32000, 152064])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_topk_lse(benchmark, dtype, vocab, rows, impl):
    benchmark.group = f"topk_lse V={vocab} {dtype} M={rows} k=10"
    logits = (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    function = op.topk_lse if impl == "sparrow" else op.eager
    benchmark.pedantic(function, (logits, 10), rounds=15, iterations=3, warmup_rounds=1)
