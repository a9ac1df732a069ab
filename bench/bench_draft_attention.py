"""draft_attention against rope + slice copies + scaled_dot_product_attention with a prebuilt mask."""

import pytest
import torch

from sparrow_ext.ops import draft_attention as op
from sparrow_ext.ops.tree_mask import tree_mask
from tests.ops.checks import random_tree

# name: H, K, D, text rows, dtype
SHAPES = {
    "mini 1.5k float32": (4, 2, 64, 1500, torch.float32),
    "7B layer 1.5k bf16": (28, 4, 128, 1500, torch.bfloat16),
}


@pytest.mark.benchmark(max_time=0.3, min_rounds=3)
@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_draft_attention(benchmark, shape, rows, impl):
    benchmark.group = f"draft_attention {shape} T={rows}"
    heads, kv_heads, dim, length, dtype = SHAPES[shape]
    k_cache, v_cache = torch.randn(2, 1, kv_heads, length + 128, dim).to(dtype).transpose(2, 3)
    qkv = torch.randn(1, rows, (heads + 2 * kv_heads) * dim).to(dtype)
    cos_sin = torch.rand(1, rows, dim)
    anc = tree_mask(random_tree(rows, torch.Generator().manual_seed(0))[None])[0]
    if impl == "eager":
        visible = op.visibility(length, 0, anc[0], rows)
        benchmark(op.eager, qkv, cos_sin, k_cache, v_cache, length, 0, visible)
    else:
        lens, start = torch.tensor([[length], [0]], dtype=torch.int32)
        benchmark(op.draft_attention, qkv, cos_sin, k_cache, v_cache, lens, start, anc)
