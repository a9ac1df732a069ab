"""The target's KV cache: one preallocated buffer for all layers, an ordinary transformers Cache from outside."""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

import sparrow_ext

BAD_COUNT = 2  # the error word's bit, see sparrow_ext.errors


class TargetLayer(CacheLayerMixin):
    """One layer's window on the cache's buffer. Appends are copies of the new rows, never of the old ones."""

    is_sliding = False
    is_croppable = True

    def __init__(self, cache: "TargetCache", index: int):
        super().__init__()
        self._cache, self._index = weakref.ref(cache), index  # no cycle: a cache's memory goes when it goes

    @property
    def cache(self) -> "TargetCache":
        """The cache it belongs to."""
        cache = self._cache()
        assert cache is not None
        return cache

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_cache": None}  # TargetCache.__setstate__ puts it back

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the whole cache's buffer when the first layer sees its first keys."""
        self.cache._allocate(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Writes [B, K, N, D] rows behind the committed ones.

        Outside a verify pass the rows are committed and the result is a view of all committed rows; inside one
        (`TargetCache.appending`) they stay uncommitted and the result is the whole buffer, for ops that take lengths.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.cache._append(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        return self.cache.layer_length(self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, max_length: int) -> None:
        """Keeps the first max_length rows; negative: drops the last -max_length rows (transformers' convention)."""
        length = self.get_seq_length()
        self.cache.set_length(max_length if max_length >= 0 else length + max_length, self._index)

    def reset(self) -> None:
        self.cache.set_length(0, self._index)


@dataclass(frozen=True)
class Place:
    """A layer's rows [B, capacity, K, D], and where new ones go: `slots`, int32 [B, N], behind `lengths`, int32 [B]."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    lengths: Tensor
    most: int


class TargetCache(Cache):
    """Preallocated keys and values of every layer, [L, 2, B, K, capacity, D].

    Attributes:
        buffer: the storage, allocated at the first append.
        lengths: int32 [B] on the device, the committed rows of each sequence (what the operators read); while some have
            ended (`select`), of those that go on, which are the first.
        fixed: the memory may not move, as captured rounds know its place.

    The capacity grows when a committed append needs more; inside a verify pass it may not (operators hold pointers).
    Verify passes and commits read the lengths on the device alone; the host hears of them by `count`.
    """

    def __init__(self, num_layers: int, capacity: int, storage: tuple[Tensor, Tensor] | None = None):
        super().__init__(layers=[TargetLayer(self, i) for i in range(num_layers)])
        self.capacity, self.fixed = capacity, False
        self.buffer, self.lengths = storage or (torch.empty(0), torch.empty(0, dtype=torch.int32))
        self._slots: Tensor | None = None
        self._host_lengths = [0] * num_layers
        self._rows: list[int] = []  # of each sequence, those that ended included
        self._aside: dict[int, tuple[Tensor, Tensor]] = {}  # by sequence: places and rows
        self._swaps: list[tuple[int, int]] = []
        if storage is not None:
            self._rows = [0] * len(self.lengths.zero_())
            self._share()

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        for layer in self.layers[: len(self._host_lengths)]:  # the others are SplitCache.upper's
            layer._cache = weakref.ref(self)

    def layer_length(self, index: int) -> int:
        """Committed rows of one layer (the longest sequence's, where they differ)."""
        return self._host_lengths[index]

    def set_length(self, length: int, layer: int | None = None) -> None:
        """Declares `length` rows committed, in one layer or in all."""
        for i in range(len(self._host_lengths)) if layer is None else [layer]:
            self._host_lengths[i] = length
        self._rows = [length] * len(self.lengths)
        self.lengths.fill_(length)

    def set_rows(self, rows: Sequence[int]) -> None:
        """Declares so many rows of each sequence committed, in all layers."""
        self._rows, self._host_lengths = list(rows), [max(rows)] * len(self._host_lengths)
        lengths = torch.tensor(self._rows, dtype=torch.int32, device=self.lengths.device)
        self.lengths = self.lengths.copy_(lengths) if len(self.lengths) == len(rows) else lengths

    @property
    def layer_lengths(self) -> list[Tensor]:
        """`lengths` of each layer."""
        return [self.lengths] * len(self._host_lengths)

    @property
    def rows(self) -> list[int]:
        """Committed rows of each sequence."""
        return list(self._rows)

    @property
    def places(self) -> list["Place"]:
        """Of each layer, where the nodes of the verify pass that runs go, see `appending`."""
        assert self._slots is not None, "no verify pass is running"
        slots, most = self._slots.int(), self.capacity - self._slots.shape[1]
        rows = self.by_row.flatten(0, 1).unbind()
        return [Place(*both, slots, self.lengths, most) for both in zip(rows[::2], rows[1::2], strict=True)]

    @property
    def by_row(self) -> Tensor:
        """The buffer of the sequences that go on as kv_commit wants it: [L, 2, B, capacity, K, D]."""
        return self.buffer[:, :, : len(self.lengths)].transpose(3, 4)

    def reserve(self, capacity: int) -> None:
        """Makes room for `capacity` rows; the committed rows move along. Raises RuntimeError where it is `fixed`."""
        if capacity <= self.capacity:
            return
        if self.fixed:
            raise RuntimeError(f"captured rounds use the cache's {self.capacity} rows, it cannot get {capacity} now")
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
        copy.lengths, copy._rows = torch.zeros_like(self.lengths), [0] * b
        copy._share()
        copy.append_rows(self.buffer[..., places, :])
        return copy

    def take_over(self, other: "TargetCache", rows: int) -> None:
        """Begins with copies of the other's first `rows` rows, whatever it held."""
        if not self.buffer.numel():
            self.buffer = other.buffer.new_empty(*other.buffer.shape[:4], self.capacity, other.buffer.shape[5])
            self.lengths = torch.zeros_like(other.lengths)
            self._share()
        self.set_length(0)
        self.append_rows(other.buffer[..., :rows, :])

    def drop(self, places: Tensor) -> None:
        """Forgets the committed rows at `places`, int64 [R], ascending: the others close up."""
        left = _others(places.to(self.lengths.device), self.layer_length(0))
        self.buffer[..., : len(left), :] = self.buffer[..., left, :]
        self.set_length(len(left))

    def set_aside(self, hidden: Tensor) -> None:
        """Takes the committed rows at `hidden`, bool [B, P], out of sight: each sequence's others close up."""
        rows = [self.layer_length(0)] * len(hidden)
        for which in hidden.any(1).nonzero()[:, 0].tolist():
            places, own = hidden[which].nonzero()[:, 0], self.buffer[:, :, which]
            left = _others(places, rows[which])
            self._aside[which] = places, own[..., places, :]
            own[..., : len(left), :] = own[..., left, :]
            rows[which] = len(left)
        self.set_rows(rows)

    def put_back(self) -> None:
        """Undoes set_aside, whatever was appended in between; nothing where nothing was set aside."""
        if not self._aside:
            return
        rows = list(self._rows)
        for which, (places, _) in self._aside.items():
            rows[which] += len(places)
        self.reserve(max(rows))
        for which, (places, aside) in self._aside.items():
            others, own = _others(places, rows[which]), self.buffer[:, :, which]
            own[..., others, :] = own[..., : len(others), :].clone()
            own[..., places, :] = aside
        self._aside = {}
        self.set_rows(rows)

    def select(self, order: Sequence[int]) -> None:
        """Goes on with some of its sequences; the others keep what they have until `bring_back`.

        order: those that go on, each at its own place or, behind the new end, at one that ended.
        """
        for place, which in enumerate(order):
            if place != which:
                self._swap(place, which)
                self._swaps.append((place, which))
        self.lengths = self.lengths[torch.tensor(order, device=self.lengths.device)]
        self._host_lengths = [max(self._rows[: len(order)])] * len(self._host_lengths)

    def bring_back(self) -> None:
        """Undoes every `select`: all sequences, in their first order."""
        for pair in reversed(self._swaps):
            self._swap(*pair)
        self._swaps = []
        self.set_rows(self._rows)

    def _swap(self, a: int, b: int) -> None:
        used = max(self._rows[a], self._rows[b])
        mine, other = (self.buffer[:, :, i, :, :used] for i in (a, b))
        before = mine.clone()
        mine.copy_(other)
        other.copy_(before)
        self._rows[a], self._rows[b] = self._rows[b], self._rows[a]

    def level(self, length: int) -> None:
        """Every sequence gets `length` rows: what is beyond is dropped, what is missing is zeros."""
        self.reserve(length)
        for which, rows in enumerate(self._rows):
            self.buffer[:, :, which, :, rows:length] = 0
        self.set_length(length)

    def append_rows(self, rows: Tensor) -> None:
        """Commits rows [L, 2, B, K, R, D] of another cache; every sequence has the same length."""
        start = self.layer_length(0)
        end = start + rows.shape[4]
        self.reserve(end)
        self.buffer[..., start:end, :] = rows
        self.set_length(end)

    @contextlib.contextmanager
    def appending(self, nodes: int, error: Tensor | None = None) -> Iterator[None]:
        """A verify pass runs inside: each sequence's `nodes` rows go behind its own length and stay uncommitted.

        error: the operators' error word, int32 [1]; lengths that leave no room set its bit for a bad count.

        Raises:
            ValueError: there is no room for them.
        """
        self.check_room(nodes)
        slots = self.lengths[:, None] + torch.arange(nodes, device=self.lengths.device)
        if error is not None:
            error.bitwise_or_((slots >= self.capacity).any().int() * BAD_COUNT)
        self._slots = slots.clamp(max=self.capacity - 1)
        try:
            yield
        finally:
            self._slots = None

    def check_room(self, nodes: int) -> None:
        """Raises ValueError where a verify pass of `nodes` nodes does not fit."""
        if (end := max(self._host_lengths) + nodes) > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} rows, a verify pass needs {end}: reserve() them before")

    def commit(self, path: Tensor, num_path: Tensor, error: Tensor | None = None) -> None:
        """Keeps the rows of accepted nodes, on the device: path int32 [B, T] and num_path int32 [B], see kv_commit."""
        lengths = torch.empty_like(self.lengths)
        sparrow_ext.kv_commit(self.by_row, path, num_path, self.lengths, lengths, error=error)
        self.lengths.copy_(lengths)

    def count(self, rows: Sequence[int]) -> None:
        """Tells the host how many more each sequence that goes on has committed."""
        for which, more in enumerate(rows):
            self._rows[which] += more
        self._host_lengths = [max(self._rows[: len(rows)])] * len(self._host_lengths)

    def _allocate(self, keys: Tensor, values: Tensor) -> None:
        if keys.shape != values.shape:
            raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must have one shape")
        b, k, _, d = keys.shape
        if not self.buffer.numel():
            self.buffer = keys.new_empty(len(self._host_lengths), 2, b, k, self.capacity, d)
            self.lengths = torch.zeros(b, dtype=torch.int32, device=keys.device)
            self._rows = [0] * b
            self._share()

    def _share(self) -> None:
        for layer, (keys, values) in zip(self.layers, self.buffer, strict=False):  # see SplitCache
            layer.keys, layer.values = keys, values

    def _append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._slots is not None:
            ours = self.buffer[index, :, : len(self._slots)]
            for cache, new in zip(ours, (keys, values), strict=True):
                _put(cache, new, self._slots)
            return ours[0], ours[1]
        start = self._host_lengths[index]
        end = start + keys.shape[2]
        if end > self.capacity:
            self.reserve(max(end, 2 * self.capacity))
        k, v = self.buffer[index, 0], self.buffer[index, 1]
        k[:, :, start:end] = keys
        v[:, :, start:end] = values
        self._host_lengths[index] = end
        if index == len(self._host_lengths) - 1:
            self._rows = [end] * len(self._rows)
            self.lengths.fill_(end)
        return k[:, :, :end], v[:, :, :end]


def _put(cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Writes rows [B, K, N, D] to cache [B, K, capacity, D] at slots, int64 [B, N]."""
    if len(slots) == 1:
        cache.index_copy_(2, slots[0], rows)  # half the time of the general form
    else:
        cache[torch.arange(len(slots), device=slots.device)[:, None], :, slots] = rows.transpose(1, 2)


def _others(places: Tensor, length: int) -> Tensor:
    """The numbers below `length` that are not in `places`, int64, ascending."""
    return torch.ones(length, dtype=torch.bool, device=places.device).index_fill_(0, places, False).nonzero()[:, 0]
