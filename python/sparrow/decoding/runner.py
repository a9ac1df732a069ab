"""The rounds of a generation: run one by one, or captured as one graph and replayed.

A captured round works on fixed memory. Both wait for the model's next generation: its prompt is run into the same
cache, its state is copied over the captured one's, and the graph goes on. The memory belongs to one sequence at a time,
from its prompt until the cache that `generate` returned is gone.
"""

import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparrow.decoding.loop import decode_round, read, step
from sparrow.decoding.stats import Clock, NoClock
from sparrow.drafters.protocol import DecodeState, Drafter
from sparrow.sampling import Sampler, SamplingRules, Stops
from sparrow.targets.adapter import Target
from sparrow.targets.cache import TargetCache
from sparrow.tree import TreeConfig

BUCKET = 1024  # cache rows: generations whose need rounds up to the same multiple share memory and captured rounds
IDLE = 2  # memories of one model that are kept while nobody uses them
WARM_UP = 2  # rounds before a capture: the first, whose catch-up is the prompt's, and one as all that follow


class Graph(Protocol):
    """What records a round and repeats it."""

    def capture(self, run: Callable[[], None]) -> None:
        """Records what `run` launches, without executing it."""

    def replay(self) -> None:
        """Executes it, on the same memory."""


class CudaGraph:
    """torch.cuda.graph."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, run: Callable[[], None]) -> None:
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may go on allocating
            run()

    def replay(self) -> None:
        self.graph.replay()


GRAPHS: dict[str, Callable[[], Graph]] = {"cuda": CudaGraph}  # by device


@dataclass(eq=False)
class Captured:
    """A round, and the state's tensors that it reads and writes, by name."""

    graph: Graph
    tensors: dict[str, Tensor]


@dataclass(eq=False)
class Room:
    """Memory of a target's cache, lent to one cache at a time, and the rounds captured on it.

    Attributes:
        identity: the target's, see Target.identity.
        capacity: rows.
        rounds: by what they depend on, see Rounds.
    """

    identity: Hashable
    capacity: int
    rounds: dict[Hashable, Captured] = field(default_factory=dict)
    _storage: tuple[Tensor, Tensor] | None = None
    _lent: Callable[[], TargetCache | None] = lambda: None

    @property
    def idle(self) -> bool:
        return self._lent() is None

    def lend(self, target: Target) -> TargetCache:
        """An empty cache on this memory. Raises RuntimeError while an earlier one exists."""
        if not self.idle:
            raise RuntimeError("this memory holds another sequence, whose cache is still in use")
        cache = target.new_cache(self.capacity, self._storage)
        self._lent = weakref.ref(cache)
        return cache

    def keep(self, cache: TargetCache) -> None:
        """Remembers the memory that the first lent cache allocated."""
        self._storage = cache.buffer, cache.lengths


# Beside the models, as in targets/borrow.py; a room knows addresses of weights and not the model.
_rooms: "weakref.WeakKeyDictionary[nn.Module, list[Room]]" = weakref.WeakKeyDictionary()


def capturable(target: Target, drafter: Drafter, rules: SamplingRules) -> bool:
    """Whether rounds can be captured."""
    plain = target.device.type in GRAPHS and not rules.processors
    return plain and target.identity() is not None and drafter.identity() is not None


def room_for(target: Target, drafter: Drafter, rules: SamplingRules, capacity: int) -> Room | None:
    """Memory of `capacity` rows or a few more for a generation whose rounds can be captured; None where they cannot."""
    if not capturable(target, drafter, rules):
        return None
    identity = target.identity()
    rooms = _rooms.setdefault(target.model, [])
    rooms[:] = [room for room in rooms if room.identity == identity or not room.idle]
    capacity = -(-capacity // BUCKET) * BUCKET
    fits = [room for room in rooms if room.identity == identity and room.capacity == capacity and room.idle]
    room = fits[-1] if fits else Room(identity, capacity)
    others = [other for other in rooms if other is not room]
    idle = [other for other in others if other.idle][1 - IDLE :]  # the last used are the last
    rooms[:] = [other for other in others if not other.idle or other in idle] + [room]
    return room


class Rounds:
    """The rounds of one generation; call it for each.

    Args:
        target, drafter, state, shape, clock, stops: as for loop.step.
        room: the memory of state.cache, where rounds are to be captured; None = each round is run by itself.
    """

    def __init__(
        self, target: Target, drafter: Drafter, state: DecodeState, shape: TreeConfig, clock: Clock,
        stops: Stops, room: Room | None = None,
    ):  # fmt: skip
        self.target, self.drafter, self.state, self.shape, self.clock = target, drafter, state, shape, clock
        self.stops, self.room, state.captured = stops, room, room is not None
        self.run = 0  # rounds of this shape that were not replayed
        self.captured: Captured | None = None
        self.settled = False  # whether those to come run as the last one did: captured already, if ever

    def use(self, shape: TreeConfig) -> None:
        """The rounds to come draft trees of another shape. What is pending is still of the last one's length, so the
        first of them is run by itself.
        """
        if shape is not self.shape and shape != self.shape:
            self.shape, self.run, self.captured, self.state.cache.fixed = shape, 0, None, False

    @property
    def scores(self) -> Tensor:
        """DraftTree.scores of the last round, on the host; no round writes over it."""
        scores = self.state.scores
        assert scores is not None
        return scores.clone() if self.state.captured or self.state.root.is_cuda else scores

    def select(self, order: list[int]) -> None:
        """The rounds to come are of some of the sequences, see TargetCache.select; not for captured rounds."""
        assert self.room is None
        self.state.select(order)
        self.state.draft = self.drafter.select(self.state.draft, torch.tensor(order, device=self.state.root.device))

    def __call__(self) -> list[list[int]]:
        """One round. Returns each sequence's tokens, as loop.read does."""
        self.settled = self.room is None or self.captured is not None
        if self.captured is None and self.room is not None and self.run > 0:
            self._find(self.room)
        if self.captured is None:
            self.run += 1
            return decode_round(self.target, self.drafter, self.state, self.shape, self.clock, self.stops)
        self.state.cache.check_room(self.shape.nodes)
        with self.clock.stage("replay"):
            self.captured.graph.replay()
            return read(self.state)

    def _find(self, room: Room) -> None:
        """Takes over a round that is captured already, or captures one where enough have been run."""
        places = {name: (holder, attribute) for name, holder, attribute in tensors_of(self.state)}
        tensors = {name: getattr(*place) for name, place in places.items()}
        shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in tensors.items())
        greedy = self.state.sampler.rules.temperature == 0
        key = (self.drafter.identity(), self.drafter.hidden_layer, self.shape, greedy, shapes)
        if (known := room.rounds.get(key)) is not None:
            for name, (holder, attribute) in places.items():
                if (mine := known.tensors[name]) is not tensors[name]:
                    setattr(holder, attribute, mine.copy_(tensors[name]))
        elif self.run >= WARM_UP:
            known = room.rounds[key] = Captured(GRAPHS[self.target.device.type](), tensors)
            known.graph.capture(lambda: step(self.target, self.drafter, self.state, self.shape, NoClock(), self.stops))
        if known is not None:
            self.captured, self.state.cache.fixed = known, True


def tensors_of(state: DecodeState) -> Iterator[tuple[str, object, str]]:
    """Where a state keeps its tensors: name, object and attribute."""
    seen: set[int] = set()

    def walk(holder: object, within: str) -> Iterator[tuple[str, object, str]]:
        if id(holder) in seen:  # the drafter's pending tokens are state.accepted
            return
        seen.add(id(holder))
        for name, value in vars(holder).items():
            if isinstance(value, Tensor):
                yield within + name, holder, name
            elif is_dataclass(value) or isinstance(value, Sampler | TargetCache):
                yield from walk(value, f"{within}{name}.")

    return walk(state, "")
