import pytest
import torch

from sparrow_ext.ops import tree_rerank as op


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize(("batch", "entries", "nodes"), [(1, 200, 31), (1, 410, 49), (3, 410, 49), (1, 4000, 128)])
def test_tree_rerank(benchmark, batch, entries, nodes, impl):
    benchmark.group = f"tree_rerank B={batch} C={entries} N={nodes}"
    generator = torch.Generator().manual_seed(0)
    parent = (torch.arange(entries, dtype=torch.int32) // 8 - 1).repeat(batch, 1)
    score = -torch.arange(entries).log1p() - torch.rand(batch, entries, generator=generator) * 0.01
    ids = torch.zeros(batch, entries, dtype=torch.int64)
    root = torch.zeros(batch, dtype=torch.int64)
    benchmark(op.tree_rerank if impl == "sparrow" else op.eager, root, score, ids, parent, nodes)
