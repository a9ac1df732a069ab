"""What a generation leaves to the next ones: the rows of a common beginning, which are not run again.

Two sequences begin alike as far as tokens, position ids and videos are the same, bit for bit; a video is taken over
whole or not at all.
"""

import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparrow.drafters.protocol import Drafter
from sparrow.targets.adapter import Target
from sparrow.targets.cache import TargetCache
from sparrow.targets.pixels import Visual

Place = tuple[int, int, bytes]  # of a video or image: its first place, the one behind it, its digest


@dataclass(frozen=True)
class Head:
    """The beginning of a sequence, on the host: what decides whether rows are good for another one.

    Attributes:
        ids: int64 [N].
        positions: int64 [..., N], the target's position ids.
        visuals: its videos and images, in order.
    """

    ids: Tensor
    positions: Tensor
    visuals: tuple[Place, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def common(self, other: "Head", most: int) -> int:
        """How many places, at most `most`, begin both. None of them is of a video that does not belong to both."""
        n = min(len(self), len(other), most)
        if n <= 0 or self.positions.shape[:-1] != other.positions.shape[:-1]:
            return 0
        same = (self.positions[..., :n] == other.positions[..., :n]).reshape(-1, n).all(0)
        n = int((same & (self.ids[:n] == other.ids[:n])).long().cumprod(0).sum())
        for pair in zip_longest(self.visuals, other.visuals):
            within = [visual for visual in pair if visual is not None and visual[0] < n]
            if within and (pair[0] != pair[1] or within[0][1] > n):
                return min(visual[0] for visual in within)
        return n

    def cut(self, n: int) -> "Head":
        """Its first n places."""
        return Head(self.ids[:n], self.positions[..., :n], tuple(v for v in self.visuals if v[0] < n))


@dataclass(frozen=True)
class Owner:
    """Whose rows they are.

    Attributes:
        model: the target.
        weights: where its weights are, and how often each was changed.
        drafter: who drafted.
    """

    model: "weakref.ref[nn.Module]"
    weights: Hashable
    drafter: Drafter[Any]

    @classmethod
    def of(cls, target: Target, drafter: Drafter[Any]) -> "Owner":
        own = target.model.parameters()
        weights = tuple((p.data_ptr(), p.dtype, None if p.is_inference() else p._version) for p in own)
        return cls(weakref.ref(target.model), weights, drafter)

    def is_also(self, other: "Owner") -> bool:
        """Whether the other's rows are its own."""
        mine, others = self.drafter, other.drafter
        keeper = mine.keeper()
        same = mine is others or (keeper is not None and keeper == others.keeper())
        return same and self.model() is other.model() is not None and self.weights == other.weights


@dataclass(frozen=True)
class Prefix:
    """A sequence's first places, ready to go on from.

    Attributes:
        owner: see there.
        head: what they are.
        cache: its first rows are theirs.
        ends: the states [1, E] that the drafter wants of the last token of each run of visual ones, by place.
        draft: what the drafter keeps of them (Drafter.keep).
        room: the cache's memory with its captured rounds, if any.
        gone: int64 [G], ascending: places whose rows were dropped from the cache (Session's lossy_window).
    """

    owner: Owner
    head: Head
    cache: TargetCache
    ends: Mapping[int, Tensor]
    draft: Mapping[str, Tensor]
    room: Any = None
    gone: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def rows(self, n: int) -> int:
        """Rows of the cache that the first n places have."""
        return n - int((self.gone < n).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of its rows, the drafter's, and its states."""
        cache = self.cache.buffer.nbytes // self.cache.capacity * self.rows(len(self.head))
        return cache + sum(t.nbytes for t in (*self.draft.values(), *self.ends.values()))

    def cut(self, n: int) -> "Prefix":
        """Its first n places; on the same memory."""
        ends = {at: state for at, state in self.ends.items() if at < n}
        return replace(self, head=self.head.cut(n), ends=ends, gone=self.gone[self.gone < n])

    def copy(self) -> "Prefix":
        """On memory of its own, no larger than needed."""
        rows = self.rows(len(self.head))
        cache = TargetCache(len(self.cache.layers), rows)
        cache.take_over(self.cache, rows)
        return replace(self, cache=cache, room=None)


class Prefixes(Protocol):
    """Where prefixes are kept."""

    in_place: bool  # a run may go on in a prefix's own cache

    def names(self, visuals: Sequence[Visual]) -> list[bytes]:
        """What tells the videos and images of a prompt from all others."""

    def find(self, owner: Owner, head: Head) -> Prefix | None:
        """The one that has most in common with this prompt, if any."""

    def keep(self, prefix: Prefix) -> None:
        """Takes what a run leaves: all of its sequence but the last token, in the cache it returns."""


class PrefixStore:
    """Prompts up to their last visual token, for calls of `generate` that begin alike: the same videos, the same words
    before them. What is behind is run in each call.

    Memory is bounded: the prompts that were not used for longest go first. It holds copies, so calls may use a store
    one after another in any order; their outputs are those without it. Weights that are changed make a prompt useless,
    which is seen; adapters that are switched on and off are not.

    Args:
        max_bytes: of all prompts together. One that is larger is not kept.

    Raises:
        ValueError: max_bytes is not positive.
    """

    in_place = False

    def __init__(self, max_bytes: int):
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes <= 0:
            raise ValueError(f"max_bytes must be a positive integer, got {max_bytes!r}")
        self.max_bytes = max_bytes
        self._prefixes: list[Prefix] = []  # the last used is the last

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(prefix.nbytes for prefix in self._prefixes)

    def __len__(self) -> int:
        """Prompts held."""
        return len(self._prefixes)

    def clear(self) -> None:
        """Forgets all."""
        self._prefixes.clear()

    def names(self, visuals: Sequence[Visual]) -> list[bytes]:
        """Hashes of what the target gets of them."""
        return [visual.digest() for visual in visuals]

    def find(self, owner: Owner, head: Head) -> Prefix | None:
        """See Prefixes."""
        self._prefixes = [prefix for prefix in self._prefixes if prefix.owner.model() is not None]
        mine = [prefix for prefix in self._prefixes if prefix.owner.is_also(owner)]
        best = max(mine, key=lambda prefix: prefix.head.common(head, len(head)), default=None)
        if best is None or not best.head.common(head, len(head)):
            return None
        self._prefixes = [prefix for prefix in self._prefixes if prefix is not best] + [best]
        return best

    def keep(self, prefix: Prefix) -> None:
        """See Prefixes: a copy of the prompt up to its last visual token, unless that is here."""
        n = max((end for _, end, _ in prefix.head.visuals), default=0)
        have = [p.head.common(prefix.head, n) for p in self._prefixes if p.owner.is_also(prefix.owner)]
        if n in (0, *have):
            return
        prefix = prefix.cut(n)
        if prefix.nbytes > self.max_bytes:
            return
        self._prefixes.append(prefix.copy())
        while self.nbytes > self.max_bytes:
            del self._prefixes[0]
