"""rope_append against rope in the dtype and slice copies."""

import pytest
import torch

from sparrow_ext.ops import rope_append as op

# name: H, K, D, dtype
SHAPES = {"mini float32": (4, 2, 64, torch.float32), "7B layer bf16": (28, 4, 128, torch.bfloat16)}


@pytest.mark.benchmark(max_time=0.3, min_rounds=3)
@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("nodes", [1, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_rope_append(benchmark, shape, nodes, impl):
    benchmark.group = f"rope_append {shape} N={nodes}"
    heads, kv_heads, dim, dtype = SHAPES[shape]
    k_cache, v_cache = torch.randn(2, 1, kv_heads, 1600, dim).to(dtype).transpose(2, 3)
    q, k, v = (torch.randn(1, nodes, h, dim).to(dtype) for h in (heads, kv_heads, kv_heads))
    angles = torch.rand(1, nodes, dim // 2)  # true rotations: q, turned in place again and again, keeps its length
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    if impl == "eager":
        benchmark(op.eager, q, k, v, cos_sin, 1500, k_cache, v_cache)
    else:
        slots = torch.arange(1500, 1500 + nodes, dtype=torch.int32)[None]
        benchmark(op.rope_append, q, k, v, cos_sin, slots, k_cache, v_cache)
