import pytest
import torch

from sparrow_ext.ops import tree_expand as op


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize(
    ("batch", "k", "level", "beam"), [(1, 8, 0, 8), (1, 8, 3, 8), (1, 10, 4, 10), (3, 8, 3, 8), (1, 32, 3, 32)]
)
def test_tree_expand(benchmark, batch, k, level, beam, impl):
    benchmark.group = f"tree_expand B={batch} k={k} level={level} beam={beam}"
    generator = torch.Generator().manual_seed(0)
    rows, entries = 1 if level == 0 else beam, k + level * beam * k
    logp = (-torch.rand(batch, rows, k, generator=generator)).sort(descending=True).values
    arguments = (
        logp,
        torch.zeros(batch, rows, k, dtype=torch.int64),
        -torch.rand(batch, rows, generator=generator),
        torch.full((batch, rows), -1, dtype=torch.int32),
        torch.zeros(batch, rows, 2, dtype=torch.int64),
        level,
        beam,
        torch.zeros(batch, entries),
        torch.zeros(batch, entries, dtype=torch.int64),
        torch.zeros(batch, entries, dtype=torch.int32),
    )
    benchmark(op.tree_expand if impl == "sparrow" else op.eager, *arguments)
