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

from sparrow.drafters.protocol import DecodeState, Drafter, Prompt
from sparrow.targets.adapter import Prefill, Target
from sparrow.targets.cache import TargetCache
from sparrow.targets.pixels import Visual, inputs_of, take_visuals, visuals_of

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
        if self.positions.shape[:-1] != other.positions.shape[:-1]:
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
        cache: its first len(head) rows are theirs.
        ends: the states [1, E] that the drafter wants of the last token of each run of visual ones, by place.
        draft: what the drafter keeps of them (Drafter.keep).
        room: the cache's memory with its captured rounds, if any.
    """

    owner: Owner
    head: Head
    cache: TargetCache
    ends: Mapping[int, Tensor]
    draft: Mapping[str, Tensor]
    room: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of its rows, the drafter's, and its states."""
        cache = self.cache.buffer.nbytes // self.cache.capacity * len(self.head)
        return cache + sum(t.nbytes for t in (*self.draft.values(), *self.ends.values()))

    def cut(self, n: int) -> "Prefix":
        """Its first n places; on the same memory."""
        return replace(self, head=self.head.cut(n), ends={at: state for at, state in self.ends.items() if at < n})


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
        copy = prefix.cut(n)
        if copy.nbytes > self.max_bytes:
            return
        cache = TargetCache(len(prefix.cache.layers), n)
        cache.take_over(prefix.cache, n)
        self._prefixes.append(replace(copy, cache=cache, room=None))
        while self.nbytes > self.max_bytes:
            del self._prefixes[0]


def check_resumes(drafter: Drafter[Any]) -> None:
    """Raises ValueError for a drafter that cannot go on from kept rows."""
    if not drafter.resumes:
        config = getattr(getattr(drafter, "drafter", None), "config", None)
        about = "" if config is None else f" (visual={config.visual}, positions={config.positions})"
        raise ValueError(
            f"sessions and prefix stores need a drafter that can go on from kept rows; {type(drafter).__name__}{about} "
            "cannot"
        )


@dataclass
class Reuse:
    """What one run takes over and what it leaves.

    Attributes:
        prefixes: where from and where to.
        target, drafter: who runs.
        held: the model's inputs of videos and images, which transformers' generate is not to see.
        first: places before it are not run. The states of the place before it are here, or it is run once more.
        head: of the prompt; None = nothing is taken over or left.
        prefix: what is taken over, cut to what is common.
    """

    prefixes: Prefixes
    target: Target
    drafter: Drafter[Any]
    held: dict[str, Any] = field(default_factory=dict)
    first: int = 0
    head: Head | None = None
    prefix: Prefix | None = None
    ends: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, prefixes: Prefixes, target: Target, drafter: Drafter[Any], inputs: dict[str, Any]) -> "Reuse":
        """For a run with these inputs of generate, out of which pixels are taken."""
        check_resumes(drafter)
        return cls(prefixes, target, drafter, take_visuals(inputs))

    def enter(self, ids: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        """Finds what is to be taken over; the model's inputs for the rest of the prompt.

        Args:
            ids: int64 [1, P], the prompt.
            inputs: what transformers' generate prepared. A prompt with hidden tokens is run as it is.
        """
        inputs = {name: value for name, value in inputs.items() if name not in self.held}
        if not inputs.get("mm_encoder_outputs"):  # from 5.24 on there, and empty
            inputs.pop("mm_encoder_outputs", None)
        mask, positions = inputs.get("attention_mask"), inputs["position_ids"][..., 0, :].cpu()
        visuals = visuals_of(self.target, ids, self.held)
        if visuals is None or (mask is not None and not mask.all()) or positions.shape[-1] != ids.shape[1]:
            return inputs | self.held
        owner, names = Owner.of(self.target, self.drafter), self.prefixes.names(visuals)
        places = tuple((v.first, v.end, name) for v, name in zip(visuals, names, strict=True))
        self.head = Head(ids[0].cpu(), positions, places)
        found = self.prefixes.find(owner, self.head)
        if found is not None:
            self._take(found)
        return inputs | inputs_of([v for v in visuals if v.first >= self.first])

    def _take(self, found: Prefix) -> None:
        """Decides how much: at least the prompt's last place is to be run, and the state before the first that is."""
        assert self.head is not None
        visual = ~self.target.is_text(self.head.ids.to(self.target.device)).cpu()
        n = self.head.common(found.head, len(self.head) - 1)
        while n > 0 and bool(visual[n - 1]) and n - 1 not in found.ends:
            n = int(self.head.common(found.head, n - 1))
        self.first = n if n > 0 and bool(visual[n - 1]) else max(n - 1, 0)
        if self.first:
            self.prefix, self.ends = found.cut(n), dict(found.cut(n).ends)

    def memory(self, capacity: int) -> tuple[Any, TargetCache] | None:
        """The prefix's own cache, where the run may go on in it and has room for `capacity` rows."""
        if self.prefix is None or not self.prefixes.in_place or self.prefix.cache.capacity < capacity:
            return None
        return self.prefix.room, self.prefix.cache

    def fill(self, cache: TargetCache) -> int:
        """Puts the rows that are taken over into the run's cache. Returns how many."""
        if self.prefix is not None and cache is not self.prefix.cache:
            cache.take_over(self.prefix.cache, self.first)
        elif self.prefix is not None:
            cache.set_length(self.first)
        return self.first

    def draft(self, prompt: Prompt) -> Any:
        """The drafter's state after the prompt."""
        return self.drafter.begin(prompt) if self.prefix is None else self.drafter.resume(self.prefix.draft, prompt)

    def joined(self, prefill: Prefill) -> Prefill:
        """The prefill with the positions of all places, and states from the last place on that was taken over."""
        if self.head is None:
            return prefill
        text, states = self.target.is_text(self.head.ids.to(prefill.hidden.device)).cpu(), prefill.hidden
        ends = (~text[self.first :] & torch.cat([text[self.first + 1 :], torch.tensor([True])])).nonzero()[:, 0]
        self.ends |= {self.first + at: states[:, at].clone() for at in ends.tolist()}
        if not self.first:
            return prefill
        before = self.ends.get(self.first - 1)
        return replace(
            prefill,
            hidden=states if before is None else torch.cat([before[:, None], states], dim=1),
            text_position=self.head.positions.reshape(-1, len(self.head))[-1:].to(states.device),
        )

    def leave(self, ids: Tensor, cache: TargetCache, room: Any, state: DecodeState) -> None:
        """Hands over what ran: ids int64 [1, N] on the host, the last of them emitted and not run."""
        if self.head is None:
            return
        n, p = ids.shape[1] - 1, len(self.head)
        after = self.head.positions[..., -1:] + 1 + torch.arange(n - p)
        head = Head(ids[0, :n], torch.cat([self.head.positions, after], dim=-1), self.head.visuals)
        owner, draft = Owner.of(self.target, self.drafter), self.drafter.keep(state.draft, state.error)
        self.prefixes.keep(Prefix(owner, head, cache, self.ends, draft, room))
