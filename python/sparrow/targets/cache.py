"""The target's KV cache: one preallocated buffer for all layers, an ordinary transformers Cache from outside."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class TargetLayer(CacheLayerMixin):
    """One layer's window on the cache's buffer. Appends are copies of the new rows, never of the old ones."""

    is_sliding = False
    is_croppable = True

    def __init__(self, cache: "TargetCache", index: int):
        super().__init__()
        self._cache, self._index = cache, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the whole cache's buffer when the first layer sees its first keys."""
        self._cache._allocate(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Writes [B, K, N, D] rows behind the committed ones.

        Outside a verify pass the rows are committed and the result is a view of all committed rows; inside one
        (`TargetCache.verifying`) they stay uncommitted and the result is the whole buffer, for ops that take lengths.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._cache._append(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        return self._cache.layer_length(self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, max_length: int) -> None:
        """Keeps the first max_length rows; negative: drops the last -max_length rows (transformers' convention)."""
        length = self.get_seq_length()
        self._cache.set_length(max_length if max_length >= 0 else length + max_length, self._index)

    def reset(self) -> None:
        self._cache.set_length(0, self._index)


class TargetCache(Cache):
    """Preallocated keys and values of every layer, [L, 2, B, K, capacity, D].

    Attributes:
        buffer: the storage, allocated at the first append.
        lengths: int32 [B] on the device, the committed rows of each sequence (what the operators read).
        verifying: True while a verify pass runs: rows are appended without being committed.

    The capacity grows when a committed append needs more; inside a verify pass it may not (operators hold pointers).
    """

    def __init__(self, num_layers: int, capacity: int):
        super().__init__(layers=[TargetLayer(self, i) for i in range(num_layers)])
        self.capacity = capacity
        self.buffer, self.lengths = torch.empty(0), torch.empty(0, dtype=torch.int32)
        self.verifying = False
        self._host_lengths = [0] * num_layers
        self._aside: tuple[Tensor, Tensor] | None = None

    def layer_length(self, index: int) -> int:
        """Committed rows of one layer (the longest sequence's, where they differ)."""
        return self._host_lengths[index]

    def set_length(self, length: int, layer: int | None = None) -> None:
        """Declares `length` rows committed, in one layer or in all."""
        for i in range(len(self.layers)) if layer is None else [layer]:
            self._host_lengths[i] = length
        self.lengths.fill_(length)

    @property
    def by_row(self) -> Tensor:
        """The buffer as kv_commit wants it: [L, 2, B, capacity, K, D]."""
        return self.buffer.transpose(3, 4)

    def reserve(self, capacity: int) -> None:
        """Makes room for `capacity` rows; the committed rows move along."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        if self.buffer.numel():
            used, old = max(self._host_lengths), self.buffer
            self.buffer = old.new_empty(*old.shape[:4], capacity, old.shape[5])
            self.buffer[..., :used, :] = old[..., :used, :]
            self._share()

    def copy_of(self, places: Tensor, capacity: int) -> "TargetCache":
        """A cache of `capacity` rows that holds copies of the committed rows at `places`, int64 [R]."""
        copy = TargetCache(len(self.layers), capacity)
        b, k, d = self.buffer.shape[2], self.buffer.shape[3], self.buffer.shape[5]
        copy.buffer = self.buffer.new_empty(len(self.layers), 2, b, k, capacity, d)
        copy.lengths = torch.zeros_like(self.lengths)
        copy._share()
        copy.append_rows(self.buffer[..., places, :])
        return copy

    def set_aside(self, places: Tensor) -> None:
        """Takes the committed rows at `places`, int64 [R], ascending, out of sight: the others close up."""
        length = self.layer_length(0)
        left = _others(places, length)
        self._aside = places, self.buffer[..., places, :]
        self.buffer[..., : len(left), :] = self.buffer[..., left, :]
        self.set_length(len(left))

    def put_back(self) -> None:
        """Undoes set_aside, whatever was appended in between; nothing where nothing was set aside."""
        if self._aside is None:
            return
        (places, rows), self._aside = self._aside, None
        length = self.layer_length(0) + len(places)
        self.reserve(length)
        others = _others(places, length)
        self.buffer[..., others, :] = self.buffer[..., : len(others), :].clone()
        self.buffer[..., places, :] = rows
        self.set_length(length)

    def append_rows(self, rows: Tensor) -> None:
        """Commits rows [L, 2, B, K, R, D] of another cache; every sequence has the same length."""
        start = self.layer_length(0)
        end = start + rows.shape[4]
        self.reserve(end)
        self.buffer[..., start:end, :] = rows
        self.set_length(end)

    def commit(self, num_path: int, lengths: Tensor) -> None:
        """Takes over the lengths kv_commit wrote: `num_path` more rows at most."""
        self._host_lengths = [n + num_path for n in self._host_lengths]
        self.lengths = lengths

    def _allocate(self, keys: Tensor, values: Tensor) -> None:
        if keys.shape != values.shape:
            raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must have one shape")
        b, k, _, d = keys.shape
        if not self.buffer.numel():
            self.buffer = keys.new_empty(len(self.layers), 2, b, k, self.capacity, d)
            self.lengths = torch.zeros(b, dtype=torch.int32, device=keys.device)
            self._share()

    def _share(self) -> None:
        for i, layer in enumerate(self.layers):
            layer.keys, layer.values = self.buffer[i, 0], self.buffer[i, 1]

    def _append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        start = self._host_lengths[index]
        end = start + keys.shape[2]
        if self.verifying:
            if end > self.capacity:
                raise ValueError(
                    f"the cache holds {self.capacity} rows, a verify pass needs {end}: reserve() them before"
                )
        elif end > self.capacity:
            self.reserve(max(end, 2 * self.capacity))
        k, v = self.buffer[index, 0], self.buffer[index, 1]
        if self.verifying and keys.shape[0] > 1:  # ragged: each sequence appends behind its own length
            rows = (self.lengths[:, None] + torch.arange(keys.shape[2], device=keys.device)).long()
            which = torch.arange(keys.shape[0], device=keys.device)[:, None]
            k[which, :, rows] = keys.transpose(1, 2)
            v[which, :, rows] = values.transpose(1, 2)
        else:
            k[:, :, start:end] = keys
            v[:, :, start:end] = values
        if self.verifying:
            return k, v
        self._host_lengths[index] = end
        if index == len(self.layers) - 1:
            self.lengths.fill_(end)
        return k[:, :, :end], v[:, :, :end]


def _others(places: Tensor, length: int) -> Tensor:
    """The numbers below `length` that are not in `places`, int64, ascending."""
    return torch.ones(length, dtype=torch.bool, device=places.device).index_fill_(0, places, False).nonzero()[:, 0]
