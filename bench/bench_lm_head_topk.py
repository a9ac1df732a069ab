import functools

import pytest
import torch

from bench.bandwidth import report
from sparrow_ext.ops import lm_head_topk as op

K = 10


@functools.cache
def head(vocab, width, dtype):
    """A random head of `vocab` rows (blocks of 8000 distinct ones)."""
    torch.manual_seed(0)
    block = (torch.randn(min(vocab, 8000), width) / width**0.5).to(dtype)
    return block.repeat(-(-vocab // len(block)), 1)[:vocab].contiguous()


def run(benchmark, capsys, impl, rows, weight, *, rounds=5, iterations=1):
    h = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(weight.dtype)
    function = op.lm_head_topk if impl == "sparrow" else op.eager
    benchmark.pedantic(function, (h, weight, K), rounds=rounds, iterations=iterations, warmup_rounds=1)
    if impl == "sparrow" and weight.shape[1] > 1000:
        report(benchmark, capsys, weight, lambda: function(h, weight, K), rounds)


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("rows", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_trimmed_vocabulary(benchmark, capsys, dtype, rows, impl):
    benchmark.group = f"lm_head_topk V=32000 E=3584 {dtype} M={rows}"
    run(benchmark, capsys, impl, rows, head(32000, 3584, dtype))


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("rows", [1, 10])
def test_full_vocabulary(benchmark, capsys, rows, impl):
    benchmark.group = f"lm_head_topk V=152064 E=3584 bf16 M={rows}"
    run(benchmark, capsys, impl, rows, head(152064, 3584, torch.bfloat16), rounds=3)


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_miniature(benchmark, capsys, dtype, rows, impl):
    benchmark.group = f"lm_head_topk V=8192 E=256 {dtype} M={rows}"
    run(benchmark, capsys, impl, rows, head(8192, 256, dtype), rounds=15, iterations=5)
