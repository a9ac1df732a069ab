"""skinny_linear and its group beside F.linear: a drafter level's, a verify pass's and a catch-up's row counts.

Width 512 with 192, 1536 and 4096 outputs is a small target's; at 3584 the weights (26 or 51 MB) exceed the caches.
"""

import functools

import pytest
import torch

import sparrow_ext
from bench.bandwidth import report
from sparrow_ext.ops import skinny_linear as op

SHAPES = [(512, 192), (512, 1536), (1408, 512), (512, 4096), (3584, 3584)]
USED = sparrow_ext.cpu_isa()
OTHER = {"avx512": "avx512_bf16", "avx512_bf16": "avx512"}.get(USED)  # how else bfloat16 may be multiplied here
if OTHER == "avx512_bf16" and not torch.cpu.get_capabilities().get("avx512_bf16"):
    OTHER = None


@functools.cache
def weights(width, outputs, dtype):
    torch.manual_seed(0)
    return (torch.randn(outputs, width) / width**0.5).to(dtype)


GROUPS = [(512, (512, 64, 64)), (512, (1408, 1408)), (3584, (3584, 512, 512))]  # q, k and v; gate and up


@pytest.mark.parametrize("impl", ["sparrow", "eager", "one by one"])
@pytest.mark.parametrize("rows", [1, 9, 26])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("shape", GROUPS, ids=str)
def test_skinny_linear_group(benchmark, shape, dtype, rows, impl):
    width, outputs = shape
    benchmark.group = f"skinny_linear_group K={width} N={'+'.join(map(str, outputs))} {dtype} M={rows}"
    x, each = torch.randn(1, rows, width).to(dtype), [weights(width, n, dtype) for n in outputs]
    functions = {
        "sparrow": op.skinny_linear_group,
        "eager": op.eager_group,
        "one by one": lambda x, each: [op.skinny_linear(x, weight) for weight in each],
    }
    benchmark.pedantic(functions[impl], [x, each], rounds=9, iterations=1 if width > 2000 else 20, warmup_rounds=1)


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("rows", [1, 4, 9, 26, 64, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_skinny_linear(benchmark, capsys, shape, dtype, rows, impl):
    benchmark.group = f"skinny_linear K={shape[0]} N={shape[1]} {dtype} M={rows}"
    args = [torch.randn(1, rows, shape[0]).to(dtype), weights(*shape, dtype)]
    function = op.skinny_linear if impl == "sparrow" else op.eager
    big = shape[0] > 2000
    benchmark.pedantic(function, args, rounds=9, iterations=1 if big else 20, warmup_rounds=1)
    if impl == "sparrow" and big and rows <= 26:
        report(benchmark, capsys, args[-1], lambda: function(*args))


@pytest.mark.skipif(OTHER is None, reason="there is one way to multiply bfloat16 on this machine")
@pytest.mark.parametrize("impl", [OTHER])
@pytest.mark.parametrize("rows", [1, 4, 9, 26, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_instructions(benchmark, shape, rows, impl):
    benchmark.group = f"skinny_linear K={shape[0]} N={shape[1]} {torch.bfloat16} M={rows}"
    args = [torch.randn(1, rows, shape[0]).bfloat16(), weights(*shape, torch.bfloat16)]
    sparrow_ext.set_cpu_isa(impl)
    try:
        big = shape[0] > 2000
        benchmark.pedantic(op.skinny_linear, args, rounds=9, iterations=1 if big else 20, warmup_rounds=1)
    finally:
        sparrow_ext.set_cpu_isa(USED)
