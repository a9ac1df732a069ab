"""What tree="auto" knows of a model and drafter: what a round of each tree costs, and what it will emit.

A choice must cost little beside a round of a few milliseconds. So what a menu of trees has in common is arrays over
trees and levels, whose entries behind a tree's own depth are 0.
"""

import copy
import functools
import itertools
import math
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparrow.tree import Root, TreeConfig

PLAIN = Root()
REMEMBERS, FORGETS = 0.98, 0.97  # what a round foretold and what came fade so much per round; of trees that do not run
LEFT = 1e-3  # a tree leaves no smaller chance to wider ones
PRIOR = 2.0  # acceptances foretold, after which a tree's own rounds count as much as those of all
SURE = 2  # rounds of a size before its measured cost alone counts
UNTRIED = 0.95  # before that, a round of a tree counts as so much of what it is guessed to cost
ROW = 0.03  # what a further row adds to a verify pass of one row, before anything is measured
LEVEL = 0.12  # what a level of drafting costs, in verify passes of one row, before anything is measured
Times = dict[int, deque[float]]


class Costs:
    """Seconds of a round by tree, measured, and interpolated for the others; and how right the drafter is.

    A round costs draft(depth, width) + verify(nodes): the first is proportional to the depth, the second linear between
    the sizes that have run. Neither grows where width or nodes shrink.

    Attributes:
        menu: the trees, M, of at most D levels.
        said, kept: float64 [M + 1, D], of each tree, and of any in the last row: the acceptances that the drafter
            foretold and those that came; older ones count less. How right it is is its own affair, not the text's:
            later generations begin with it.
        gains: float64 [M, D], what a draft of the last rounds foretells of each tree, before that correction; a
            generation begins with those of the one before. None = nothing was drafted yet.
        shown: float64 [M, M, D], by tree, what the drafts that show it foretell of it and of all narrower ones. Where a
            narrower one is drafted, which shows its own nodes only, a wider one has in addition what it added to that
            one here. `known` [M]: of which trees.
        unread: drafts that `learn` has not read: tree, accepted tokens and scores of each sequence.
    """

    def __init__(self, menu: Sequence[TreeConfig]) -> None:
        self.menu = tuple(menu)
        m, d = len(self.menu), max(shape.depth for shape in self.menu)
        self.said, self.kept = np.zeros((m + 1, d)), np.zeros((m + 1, d))
        self.said[-1] = self.kept[-1] = PRIOR  # as if it had been right so often before
        self.gains: np.ndarray | None = None
        self.shown, self.known = np.zeros((m, m, d)), np.zeros(m, dtype=bool)
        self.unread: list[tuple[TreeConfig, Sequence[int], Tensor | np.ndarray]] = []
        self._seen = 0  # levels of which any draft has foretold
        self._width = np.array([shape.width for shape in self.menu])
        self._verify: Times = {}
        self._level: Times = {}  # per width: seconds of one level

    def elsewhere(self) -> "Costs":
        """For another length of context: the same drafter; what verifying costs there is to be seen."""
        other = copy.deepcopy(self)
        other._verify.clear()
        return other

    @property
    def measured(self) -> bool:
        """Whether a round has been seen."""
        return bool(self._verify)

    def saw(self, shape: TreeConfig, draft: float, rest: float) -> None:
        """A round of `shape` took `draft` seconds to draft and `rest` seconds for all else."""
        self._verify.setdefault(shape.nodes, deque(maxlen=9)).append(rest)
        if shape.nodes > 1:
            self._level.setdefault(shape.width, deque(maxlen=9)).append(draft / shape.depth)

    # ---- what a round emits ----

    def learn(self, new: float, add: float) -> None:
        """Reads the drafts that are unread, oldest first; the arguments are `drafted`'s."""
        unread, self.unread = self.unread, []
        for shape, drafts in itertools.groupby(unread, key=lambda draft: draft[0]):
            _, accepted, scores = zip(*drafts, strict=True)
            given = np.concatenate([np.asarray(one)[:, : shape.candidates] for one in scores])
            foretold = expected(given, shape, self.menu)
            self.drafted(shape, foretold, list(itertools.chain(*accepted)), new, add)

    def drafted(self, shape: TreeConfig, foretold: np.ndarray, accepted: Sequence[int], new: float, add: float) -> None:
        """Drafts of `shape`, oldest first.

        Args:
            foretold: float64 [drafts, M, D], of each tree, see `expected`.
            accepted: levels of each that came.
            new: weight of a draft beside what those before foretold; add: the same, of `shown`.
        """
        own = self.menu.index(shape)
        self._compare(own, foretold[:, own, : shape.depth], np.asarray(accepted))
        for wide in np.flatnonzero((self._width <= shape.width) & (self._width > 1)):
            first = self.shown[wide] if self.known[wide] else foretold[0]
            self.shown[wide], self.known[wide] = _faded(first, foretold, add), True
        wider = self.known & (self._width > shape.width)
        if wider.any():
            foretold = np.where(wider[:, None], self._filled(own, foretold), foretold)
        self.gains = _faded(foretold[0] if self.gains is None else self.gains, foretold, new)

    def _compare(self, own: int, foretold: np.ndarray, accepted: np.ndarray) -> None:
        """What drafts of one tree foretold, [drafts, its levels], beside what came."""
        drafts, levels = foretold.shape
        came = accepted[:, None] > np.arange(levels)
        for table, new in ((self.said, foretold), (self.kept, came)):
            both = table[[own, -1]]
            np.multiply(table, FORGETS**drafts, out=table)  # texts change
            both[:, :levels] = REMEMBERS**drafts * both[:, :levels] + _powers(REMEMBERS, drafts) @ new
            table[[own, -1]] = both
        self._seen = max(self._seen, levels)

    def _filled(self, narrow: int, levels: np.ndarray) -> np.ndarray:
        """Wider trees' levels [drafts, M, D], of which the narrower one's draft shows its own part: of the chance that
        this one leaves, the share that the wider one had where it was shown.
        """
        with_it = self.shown.diagonal().T  # [M, D]
        below = _deeper(self.shown[:, narrow], self.menu[narrow].depth)
        share = (with_it - below) / np.maximum(LEFT, 1 - below) * _within(self.menu)
        return (levels + share * (1 - levels)).clip(0.0, 1.0)

    def right(self) -> np.ndarray:
        """float64 [M, D], acceptances per acceptance foretold: of any tree at first, of this one as it runs."""
        of_any = self.kept[-1] / self.said[-1]
        of_any[self._seen :] = of_any[max(0, self._seen - 1)]
        return (self.kept[:-1] + PRIOR * of_any) / (self.said[:-1] + PRIOR)

    def tokens(self) -> np.ndarray:
        """float64 [M], expected of a round of each tree."""
        if self.gains is None:
            return np.ones(len(self.menu))
        return 1.0 + np.minimum(1.0, self.gains * self.right()).sum(1)

    # ---- what it costs ----

    def sure(self, shape: TreeConfig) -> bool:
        """Whether enough rounds of its size have been measured."""
        return len(self._verify.get(shape.nodes, ())) >= SURE

    def seconds(self, shapes: Sequence[TreeConfig]) -> list[float]:
        """Of a round of each, once any round has been measured; a little less than is likely of a tree whose size has
        hardly run, so that it is tried where it might be the best.
        """
        verify, level = _least(self._verify), _least(self._level)
        found = []
        for shape in shapes:
            rest = _estimate(self._verify, verify, shape.nodes, _between)
            if shape.nodes == 1:
                found.append(rest)
                continue
            if level:
                draft = _estimate(self._level, level, shape.width, _nearest)
            else:
                draft = LEVEL * _estimate(self._verify, verify, 1, _between)
            found.append((1.0 if self.sure(shape) else UNTRIED) * (rest + shape.depth * draft))
        return found


def _faded(old: np.ndarray, new: np.ndarray, weight: float) -> np.ndarray:
    """What is left of `old` when each of new[0], new[1], ... has moved it by `weight` of the distance."""
    drafts = len(new)
    return (1 - weight) ** drafts * old + weight * np.tensordot(_powers(1 - weight, drafts), new, 1)


@functools.lru_cache(maxsize=256)
def _powers(base: float, count: int) -> np.ndarray:
    return base ** np.arange(count - 1.0, -1.0, -1.0)


def _deeper(levels: np.ndarray, depth: int) -> np.ndarray:
    """The levels [..., D] beyond `depth`: the last one times the ratio of the last two, at most 1."""
    beyond = levels.shape[-1] - depth
    if beyond <= 0:
        return levels
    last = levels[..., depth - 1 : depth]
    before = levels[..., depth - 2 : depth - 1] if depth > 1 else np.ones_like(last)
    ratio = np.minimum(1.0, last / np.maximum(before, 1e-30))
    return np.concatenate([levels[..., :depth], last * ratio ** np.arange(1.0, beyond + 1)], axis=-1)


def _least(measured: Times) -> dict[int, float]:
    """Of each size, and no more than of all larger ones: the quarter of its rounds that took least took at most this.
    Others' work on the machine only ever adds to a round; the least of many would be luckier than that of few.
    """
    known, least = {}, math.inf
    for size in sorted(measured, reverse=True):
        times = sorted(measured[size])
        known[size] = least = min(least, times[len(times) // 4])
    return known


def _estimate(
    measured: Times, known: dict[int, float], size: int, guess: Callable[[dict[int, float], int], float]
) -> float:
    """Seconds of a size: measured, or guessed from the others; the less of the two where few rounds were measured, so
    that it is tried again.
    """
    if len(measured.get(size, ())) >= SURE:
        return known[size]
    others = {other: seconds for other, seconds in known.items() if other != size}
    own = known.get(size, math.inf)
    return min(own, guess(others, size)) if others else own


def _nearest(known: dict[int, float], width: int) -> float:
    return known[min(known, key=lambda other: (abs(other - width), other))]


def _between(known: dict[int, float], nodes: int) -> float:
    """Seconds of a verify pass of `nodes` rows: linear between measured sizes, ROW a row where only one is known."""
    sizes = sorted(known)
    low, high = ([n for n in sizes if n < nodes], [n for n in sizes if n > nodes])
    if low and high:
        a, b = low[-1], high[0]
        return known[a] + (known[b] - known[a]) * (nodes - a) / (b - a)
    near = low[-1] if low else high[0]
    row = known[near] / (1 + ROW * (near - 1))
    if len(sizes) > 1:
        a, b = (sizes[-2], sizes[-1]) if low else (sizes[0], sizes[1])
        row = max(0.0, known[b] - known[a]) / (b - a) / ROW
    return max(known[near] + ROW * row * (nodes - near), 0.2 * known[near])


def expected(scores: np.ndarray, drafted: TreeConfig, menu: tuple[TreeConfig, ...]) -> np.ndarray:
    """Per draft of `drafted`, tree of `menu` and level, the sum of its nodes' probabilities: float64 [drafts, M, D], D
    the levels of the deepest, with 0 behind a tree's own.

    A level that was not drafted counts as the last one times the ratio of the last two, at most 1.

    Args:
        scores: float32 [drafts, candidates of `drafted`], joint log-probabilities: `width` of level 1, then width *
            width of each further one, grouped by parent, best first.
    """
    among, total, levels = _candidates(drafted, menu)
    probability = np.exp(scores.astype(np.float64))
    probability[np.isnan(probability)] = 0.0
    best = np.argsort(-probability, axis=1, kind="stable")
    among = among[:, best].swapaxes(0, 1)  # [drafts, M, candidates]
    kept = among & (among.cumsum(2) <= total)
    sums = (kept * np.take_along_axis(probability, best, 1)[:, None]) @ levels[best]
    return _deeper(sums.clip(max=1.0), drafted.depth) * _within(menu)


@functools.lru_cache(maxsize=256)
def _candidates(drafted: TreeConfig, menu: tuple[TreeConfig, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which candidates of `drafted` each tree has among its own, bool [M, candidates]; of how many it keeps the best,
    int64 [M, 1]; and each one's level, one-hot float64 [candidates, D].
    """
    width, index = drafted.width, np.arange(drafted.candidates)
    level, rank = np.zeros_like(index), index.copy()
    level[width:] = 1 + (index[width:] - width) // (width * width)
    rank[width:] = np.maximum((index[width:] - width) % width, (index[width:] - width) // width % width)
    among = [(rank < shape.width) & (level < shape.depth) & (shape.nodes > 1) for shape in menu]
    total = np.array([[shape.nodes - 1] for shape in menu])
    deepest = max(shape.depth for shape in menu)
    return np.stack(among), total, np.eye(max(drafted.depth, deepest))[level, :deepest]


@functools.lru_cache(maxsize=256)
def _within(menu: tuple[TreeConfig, ...]) -> np.ndarray:
    """float64 [M, D]: 1 on a tree's own levels."""
    deepest = max(shape.depth for shape in menu)
    return np.array([[level < shape.depth and shape.nodes > 1 for level in range(deepest)] for shape in menu], float)


# Beside the models, as in targets/borrow.py.
_costs: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Costs]]" = weakref.WeakKeyDictionary()


def costs_of(model: nn.Module, drafter: Hashable, menu: tuple[TreeConfig, ...], context: int, batch: int = 1) -> Costs:
    """What is known of this model and drafter on its device, with these threads, at about this context, in tokens, of
    so many sequences together. Of a context that is new, what the nearest one knows of the drafter.
    """
    known = _costs.setdefault(model, {})
    place = (drafter, menu, model.device, model.dtype, torch.get_num_threads(), batch)
    if (key := (*place, context.bit_length())) not in known:
        alike = [other for other in known if other[:-1] == place and known[other].measured]
        nearest = min(alike, key=lambda other: abs(other[-1] - key[-1]), default=None)
        known[key] = Costs(menu) if nearest is None else known[nearest].elsewhere()
    return known[key]
