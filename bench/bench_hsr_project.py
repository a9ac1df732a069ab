import functools

import pytest
import torch

from bench.bandwidth import report
from sparrow_ext.ops import hsr_project as op


@functools.cache
def tables(width, dtype):
    """embed, hidden, weight. At width 3584 the weights (51 or 103 MB) exceed the caches."""
    torch.manual_seed(0)
    shapes = [(1000, width), (128, width), (width, 2 * width)]
    return [(torch.randn(s) / width**0.5).to(dtype) for s in shapes]


@functools.cache
def folded_tables(width, dtype):
    """table, hidden, weight of the folded form: half the weights, and a table of V x O."""
    embed, hidden, weight = tables(width, dtype)
    return op.fold_embedding(embed, weight), hidden, weight[:, width:]


@pytest.mark.parametrize("impl", ["sparrow", "eager", "folded"])
@pytest.mark.parametrize("rows", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("width", [256, 3584])
def test_hsr_project(benchmark, capsys, width, dtype, rows, impl):
    benchmark.group = f"hsr_project E=H=O={width} {dtype} M={rows}"
    chosen = [torch.randint(0, 1000, (rows,)), torch.randint(0, 128, (rows,), dtype=torch.int32)]
    args = [*chosen, *(folded_tables if impl == "folded" else tables)(width, dtype)]
    function = {"sparrow": op.hsr_project, "eager": op.eager, "folded": op.hsr_project_folded}[impl]
    benchmark.pedantic(function, args, rounds=15, iterations=1 if width > 1000 else 50, warmup_rounds=1)
    if impl == "sparrow" and width > 1000:
        report(benchmark, capsys, args[-1], lambda: function(*args))


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_prefill(benchmark, dtype, impl):
    benchmark.group = f"hsr_project E=H=O=3584 {dtype} M=256"
    args = [torch.randint(0, 1000, (256,)), torch.randint(0, 128, (256,), dtype=torch.int32), *tables(3584, dtype)]
    benchmark.pedantic(op.hsr_project if impl == "sparrow" else op.eager, args, rounds=3, iterations=1)
