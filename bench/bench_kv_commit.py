import pytest
import torch

from sparrow_ext.ops import kv_commit as op

SHAPES = {  # layers, B, S, K, D, dtype
    "miniature": (4, 1, 1024, 2, 64, torch.float32),
    "7B": (28, 1, 4096, 4, 128, torch.bfloat16),
    "7B B=3": (28, 3, 2048, 4, 128, torch.bfloat16),
}
IMPLS = {"sparrow": op.kv_commit, "eager": op.eager, "eager_stacked": op.eager_stacked}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("accepted", [4, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kv_commit(benchmark, shape, accepted, impl):
    benchmark.group = f"kv_commit {shape} path={accepted}"
    layers, batch, rows, heads, dim, dtype = SHAPES[shape]
    kv = torch.zeros(layers, 2, batch, heads, rows, dim, dtype=dtype).transpose(3, 4)
    nodes = torch.arange(16, dtype=torch.int32) * 3
    nodes[1:] += 1
    path = nodes.repeat(batch, 1)
    base = torch.full((batch,), rows - 64, dtype=torch.int32)
    num_path = torch.full((batch,), accepted, dtype=torch.int32)
    benchmark(IMPLS[impl], kv, path, num_path, base, torch.zeros_like(base))
