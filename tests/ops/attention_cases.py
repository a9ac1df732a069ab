"""Inputs for the attention tests: caches as decoding sees them, random trees, rotary angles."""

import torch
from torch import Tensor

from sparrow_ext.ops.tree_mask import tree_mask
from tests.ops.checks import poison, random_tree


def caches(batch: int, rows: int, kv_heads: int, dim: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Key and value cache [B, Smax, K, D]: transposed views of one [2, B, K, Smax, D] buffer, NaN around them."""
    generator = torch.Generator().manual_seed(seed)
    buffer = poison(torch.empty(2, batch, kv_heads, rows + 5, dim + 8, dtype=dtype))
    views = [x[:, :, :rows, :dim].transpose(1, 2) for x in buffer]
    for x in views:
        x.copy_(torch.randn(x.shape, generator=generator))
    return views[0], views[1]


def poison_rows(views: tuple[Tensor, Tensor], used: list[int]) -> None:
    """NaN in the rows from used[b] on: nothing may read them."""
    for x in views:
        for b, rows in enumerate(used):
            poison(x[b, rows:])


def clean(*views: Tensor) -> list[Tensor]:
    """Copies without NaN, for compositions that multiply masked rows by zero."""
    return [x.nan_to_num(0.0) for x in views]


def words(batch: int, nodes: int, seed: int = 0) -> Tensor:
    """Ancestor words [B, N, W] of random forests."""
    generator = torch.Generator().manual_seed(seed)
    rows = [random_tree(nodes, generator, forest=True) for _ in range(batch)]
    return tree_mask(torch.stack(rows) if rows else torch.empty(0, nodes, dtype=torch.int32))[0]


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def angles(batch: int, rows: int, dim: int, seed: int = 0) -> Tensor:
    """cos_sin float32 [B, T, D] of positions anywhere below 30000."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.randint(0, 30000, (batch, rows, 1), generator=generator).double()
    phase = position * 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    return torch.cat((phase.cos(), phase.sin()), -1).float()
