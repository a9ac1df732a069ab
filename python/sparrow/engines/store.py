"""Draft rows that live as long as the target's own cache keeps a prefix: a store numbered by its KV slots."""

import torch
from torch import Tensor


def columns_per_token(kv_heads: int, head_dim: int, hidden_size: int, block_size: int) -> int:
    """Elements per KV slot: a row's key and value, and the slot's share of its block's last state; an even number."""
    share = -(-hidden_size // block_size)
    return 2 * kv_heads * head_dim + share + share % 2


class RowStore:
    """Keys and values of text rows at the KV slots of their tokens, and the target's state at each block's end.

    A request that starts behind a cached prefix of whole blocks finds the prefix's rows here, and the state its own
    first row needs. Slots of visual tokens hold no row. What a block held before the engine gave it to another request
    is overwritten slot by slot, before the engine can offer the block as a prefix.

    Args:
        cache: [blocks, 1, tokens, C], C of `columns_per_token`, any strides; slot s is its row (s // tokens, s %
            tokens). A device tensor that the engine allocates, and whose life it governs.
        block_size: tokens of one block of the engine's prefix cache, a multiple of `tokens`.
        kv_heads, head_dim, hidden_size: the drafter's K and D, the target's E.
    """

    def __init__(self, cache: Tensor, block_size: int, kv_heads: int, head_dim: int, hidden_size: int):
        if cache.dim() != 4 or cache.shape[1] != 1 or block_size % cache.shape[2]:
            raise ValueError(
                f"cache must be [blocks, 1, tokens, C], tokens a divisor of {block_size}; got {cache.shape}"
            )
        if cache.shape[3] != (need := columns_per_token(kv_heads, head_dim, hidden_size, block_size)):
            raise ValueError(f"cache must have {need} columns, got {cache.shape[3]}")
        self.cache, self.block_size, self.shape = cache[:, 0], block_size, (2, kv_heads, head_dim)
        self.row, self.hidden_size = 2 * kv_heads * head_dim, hidden_size

    def _at(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        return slots // self.cache.shape[1], slots % self.cache.shape[1]

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Rows [R, K, D] at KV slots int64 [R]."""
        self.cache[(*self._at(slots), slice(self.row))] = torch.stack([keys, values], dim=1).flatten(1)

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [R, K, D] at KV slots int64 [R]."""
        rows = self.cache[self._at(slots)][:, : self.row].unflatten(1, self.shape)
        return rows[:, 0], rows[:, 1]

    def _shares(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        first = slots - slots % self.block_size
        return self._at(first[:, None] + torch.arange(self.block_size, device=slots.device))

    def write_edges(self, slots: Tensor, states: Tensor) -> None:
        """States [X, E] of tokens at the last KV slots of their blocks, int64 [X]."""
        share = self.cache.shape[2] - self.row
        padded = states.new_zeros(len(states), self.block_size * share)
        padded[:, : self.hidden_size] = states
        self.cache[(*self._shares(slots), slice(self.row, None))] = padded.unflatten(1, (self.block_size, share))

    def read_edges(self, slots: Tensor) -> Tensor:
        """The states [X, E] that write_edges left at these slots."""
        return self.cache[self._shares(slots)][:, :, self.row :].flatten(1)[:, : self.hidden_size]
