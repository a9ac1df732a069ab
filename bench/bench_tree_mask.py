import pytest
import torch

import sparrow_ext
from sparrow_ext.ops import tree_mask as op
from tests.ops.checks import random_tree


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("nodes", [31, 128])
def test_tree_mask(benchmark, nodes, impl):
    benchmark.group = f"tree_mask N={nodes}"
    parent = random_tree(nodes, torch.Generator().manual_seed(0))[None]
    benchmark(sparrow_ext.tree_mask if impl == "sparrow" else op.eager, parent)
