import pytest
import torch

from sparrow_ext.ops import tree_accept as op
from tests.ops.checks import random_tree


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize(("batch", "nodes"), [(1, 8), (1, 26), (1, 61), (1, 128), (3, 61)])
def test_tree_accept(benchmark, batch, nodes, impl):
    benchmark.group = f"tree_accept B={batch} N={nodes}"
    generator = torch.Generator().manual_seed(0)
    parent = torch.stack([random_tree(nodes, generator) for _ in range(batch)])
    tokens = torch.randint(0, 3, (batch, nodes), generator=generator)
    target = torch.randint(0, 3, (batch, nodes), generator=generator)
    counts = torch.full((batch,), nodes, dtype=torch.int32)
    benchmark(op.tree_accept if impl == "sparrow" else op.eager, tokens, parent, target, counts, 8)
