"""tree_attention against scaled_dot_product_attention with a prebuilt mask: the miniature and one 7B layer."""

import pytest
import torch

from sparrow_ext.ops import tree_attention as op
from sparrow_ext.ops.tree_mask import tree_mask
from tests.ops.checks import random_tree

# name: H, K, D, prefix, dtype
SHAPES = {
    "mini 1.5k float32": (4, 2, 64, 1500, torch.float32),
    "7B layer 1.5k bf16": (28, 4, 128, 1500, torch.bfloat16),
    "7B layer 25k bf16": (28, 4, 128, 25000, torch.bfloat16),
}


@pytest.mark.benchmark(max_time=0.3, min_rounds=3)
@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("nodes", [1, 8, 16, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_tree_attention(benchmark, shape, nodes, impl):
    benchmark.group = f"tree_attention {shape} N={nodes}"
    heads, kv_heads, dim, prefix, dtype = SHAPES[shape]
    k_cache, v_cache = torch.randn(2, 1, kv_heads, prefix + nodes, dim).to(dtype).transpose(2, 3)
    q = torch.randn(1, nodes, heads, dim).to(dtype)
    lens = torch.tensor([prefix], dtype=torch.int32)
    anc = tree_mask(random_tree(nodes, torch.Generator().manual_seed(0))[None])[0]
    if impl == "eager":
        visible = op.visibility(lens, None, anc, nodes, prefix + nodes)
        benchmark(op.eager, q, k_cache, v_cache, visible)
    else:
        benchmark(op.tree_attention, q, k_cache, v_cache, lens, None, anc)
