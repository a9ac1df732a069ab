"""tree="auto": which tree to draft next, from what rounds cost and from how sure the drafter was.

A pure function of measured numbers: a round of tree s is expected to emit E(s) tokens in T(s) seconds, and the tree of
the greatest E / T is drafted. E is 1 plus the probabilities that its nodes are accepted, from the drafter's own scores
(the joint log-probability of each candidate, as EAGLE-2 ranks them, arXiv 2406.16858), corrected per level by what was
accepted. T is measured, and interpolated for trees that have not run. Where no tree is worth its time nothing is
drafted, and a tree is tried again ever more rarely. It never changes a token: verification accepts the same tokens
whatever was drafted.
"""

import copy
import functools
import math
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparrow.drafters.protocol import Drafter
from sparrow.tree import MAX_NODES, Root, TreeConfig

PLAIN = ANY = Root()
# With the root, whole fours of rows: those the CPU kernels multiply together.
SHAPES = ("3-1-3", "3-3-1", "7-3-3", "15-4-6", "23-5-8", "39-10-6")
MENU = tuple(TreeConfig.parse(text) for text in SHAPES)
EVERY, SELDOM = 4, 8  # rounds between choices, at first and where the tree has stayed the same
FIRST_WAIT, LONGEST_WAIT = 8, 128  # rounds without a draft before one is tried again: doubled each time it was in vain
REMEMBERS, FORGETS = 0.98, 0.97  # what a round foretold and what came fade so much per round; of trees that do not run
TRIES, HOPE = 8, 0.8  # the first drafts, in which a tree that is expected at this share of plain speed is drafted
CLEARLY = 0.95  # the same share later
ADDS = 0.3  # weight of a draft in what wider trees add to narrower ones
LEFT = 1e-3  # a tree leaves no smaller chance to wider ones
PRIOR = 2.0  # acceptances foretold, after which a tree's own rounds count as much as those of all
SURE = 2  # rounds of a size before its measured cost alone counts
UNTRIED = 0.95  # before that, a round of a tree counts as so much of what it is guessed to cost
ROW = 0.03  # what a further row adds to a verify pass of one row, before anything is measured
LEVEL = 0.12  # what a level of drafting costs, in verify passes of one row, before anything is measured


class Costs:
    """Seconds of a round by tree, measured: the least of the last few, since others' work on the machine only ever adds
    to it, interpolated for the others; and how right the drafter is.

    A round costs draft(depth, width) + verify(nodes): the first is proportional to the depth, the second linear between
    the sizes that have run. Neither grows where width or nodes shrink.

    Attributes:
        said, kept: by tree (ANY: of all) and level, the acceptances that the drafter foretold and those that came;
            older ones count less. How right it is is its own affair, not the text's: later generations begin with it.
        gains: by tree and level, what a draft of the last rounds foretells, before that correction; a generation begins
            with those of the one before.
        shown: by tree, what the drafts that show it foretell of it and of all narrower ones. Where a narrower one is
            drafted, which shows its own nodes only, a wider one has in addition what it added to that one here.
    """

    def __init__(self) -> None:
        self.said: dict[TreeConfig, list[float]] = {}
        self.kept: dict[TreeConfig, list[float]] = {}
        self.gains: dict[TreeConfig, list[float]] = {}
        self.shown: dict[TreeConfig, dict[TreeConfig, list[float]]] = {}
        self._verify: dict[int, deque[float]] = {}
        self._level: dict[int, deque[float]] = {}  # per width: seconds of one level

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

    def right(self, shape: TreeConfig, level: int) -> float:
        """Acceptances per acceptance foretold: of any tree at first, of this one as it runs."""
        said, kept = self.said[ANY], self.kept[ANY]
        of_any = kept[min(level, len(said) - 1)] / said[min(level, len(said) - 1)]
        if level >= len(self.said.get(shape, ())):
            return of_any
        return (self.kept[shape][level] + PRIOR * of_any) / (self.said[shape][level] + PRIOR)

    def tokens(self, shape: TreeConfig) -> float:
        """Expected of a round of one of the menu's trees."""
        gains = self.gains.get(shape, ())
        return 1.0 + sum(min(1.0, gain * self.right(shape, level)) for level, gain in enumerate(gains))

    def foretells(self, drafted: TreeConfig, gains: dict[TreeConfig, list[float]], new: float, add: float) -> None:
        """What drafts of one tree foretell of every tree.

        new: their weight beside what those before foretold; add: the same, of `shown`.
        """
        for wide in gains:
            if 1 < wide.width <= drafted.width:
                known = self.shown.setdefault(wide, {})
                for shape, levels in gains.items():
                    if shape.width <= wide.width:
                        known[shape] = _towards(known.get(shape, levels), levels, add)
        for shape, levels in gains.items():
            more = shape.width > drafted.width and drafted in self.shown.get(shape, ())
            said = self._filled(shape, drafted, levels) if more else levels
            self.gains[shape] = _towards(self.gains.get(shape, said), said, new)

    def _filled(self, wide: TreeConfig, narrow: TreeConfig, levels: list[float]) -> list[float]:
        """The wider tree's levels, of which the narrower one's draft shows its own part: of the chance that this one
        leaves, the share that the wider one had where it was shown.
        """
        known = self.shown[wide]
        below = _deeper(list(known[narrow]), wide)
        shares = [(w - n) / max(LEFT, 1 - n) for w, n in zip(known[wide], below, strict=False)]
        return [min(1.0, max(0.0, x + share * (1 - x))) for x, share in zip(levels, shares, strict=True)]

    def drafted(self, shape: TreeConfig, foretold: Sequence[float], accepted: int) -> None:
        """A round of `shape` foretold so much of each level, and `accepted` levels came."""
        for table in (self.said, self.kept):
            for tree, levels in table.items():
                if tree not in (shape, ANY):  # they fade as well: texts change
                    levels[:] = [FORGETS * x for x in levels]
        for tree, begun in ((ANY, PRIOR), (shape, 0.0)):  # PRIOR: as if it had been right so often before
            said, kept = self.said.setdefault(tree, []), self.kept.setdefault(tree, [])
            for level, gain in enumerate(foretold):
                if level == len(said):
                    said.append(begun)
                    kept.append(begun)
                said[level] = REMEMBERS * said[level] + gain
                kept[level] = REMEMBERS * kept[level] + (accepted > level)

    def sure(self, shape: TreeConfig) -> bool:
        """Whether enough rounds of its size have been measured."""
        return len(self._verify.get(shape.nodes, ())) >= SURE

    def seconds(self, shape: TreeConfig) -> float:
        """Of a round of `shape`, once any round has been measured; a little less than is likely of a tree whose size
        has hardly run, so that it is tried where it might be the best.
        """
        verify = _estimate(self._verify, shape.nodes, _between)
        if shape.nodes == 1:
            return verify
        hope = 1.0 if self.sure(shape) else UNTRIED
        if not self._level:
            return hope * (verify + shape.depth * LEVEL * _estimate(self._verify, 1, _between))
        return hope * (verify + shape.depth * _estimate(self._level, shape.width, _nearest))


def _towards(old: list[float], new: list[float], weight: float) -> list[float]:
    return [a + weight * (b - a) for a, b in zip(old, new, strict=True)]


def _estimate(measured: dict[int, deque[float]], size: int, guess: Callable[[dict[int, float], int], float]) -> float:
    """Seconds of a size: measured, or guessed from the others; the less of the two where few rounds were measured, so
    that it is tried again.
    """
    others = _least(measured)
    own = others.pop(size, math.inf)
    if not others or len(measured.get(size, ())) >= SURE:
        return own
    return min(own, guess(others, size))


def _least(measured: dict[int, deque[float]]) -> dict[int, float]:
    """The least of each size and all larger ones."""
    known, least = {}, math.inf
    for size in sorted(measured, reverse=True):
        known[size] = least = min(least, *measured[size])
    return known


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


def expected(scores: np.ndarray, drafted: TreeConfig, menu: Sequence[TreeConfig]) -> list[list[list[float]]]:
    """Per draft of `drafted`, tree of `menu` and level: the sum of its nodes' probabilities.

    A level that was not drafted counts as the last one times the ratio of the last two, at most 1.

    Args:
        scores: float32 [drafts, candidates of `drafted`], joint log-probabilities: `width` of level 1, then width *
            width of each further one, grouped by parent, best first.
    """
    within, total, levels = _holds(drafted, tuple(menu))
    probability = np.exp(scores.astype(np.float64))
    probability[np.isnan(probability)] = 0.0
    best = np.argsort(-probability, axis=1, kind="stable")
    within = within[:, best]  # [trees, drafts, candidates]
    kept = within & (within.cumsum(2) <= total[..., None])
    sums = (kept * np.take_along_axis(probability, best, 1)).swapaxes(0, 1) @ levels[best]
    return [
        [_deeper(of[: shape.depth], shape) for of, shape in zip(draft, menu, strict=True)]
        for draft in sums.clip(max=1.0).tolist()
    ]


@functools.lru_cache(maxsize=256)
def _holds(drafted: TreeConfig, menu: tuple[TreeConfig, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which candidates of `drafted` each tree has among its own, bool [trees, candidates]; of how many it keeps the
    best, int64 [trees, 1]; and each one's level, one-hot float64 [candidates, depth].
    """
    width, index = drafted.width, np.arange(drafted.candidates)
    level, rank = np.zeros_like(index), index.copy()
    level[width:] = 1 + (index[width:] - width) // (width * width)
    rank[width:] = np.maximum((index[width:] - width) % width, (index[width:] - width) // width % width)
    within = [(rank < shape.width) & (level < shape.depth) for shape in menu]
    total = np.array([[shape.nodes - 1] for shape in menu])
    return np.stack(within), total, np.eye(drafted.depth)[level]


def _deeper(levels: list[float], shape: TreeConfig) -> list[float]:
    if shape.nodes == 1:
        return []
    while len(levels) < shape.depth:
        ratio = min(1.0, levels[-1] / levels[-2]) if len(levels) > 1 and levels[-2] > 0 else levels[-1]
        levels.append(levels[-1] * ratio)
    return levels


# Beside the models, as in targets/borrow.py.
_costs: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Costs]]" = weakref.WeakKeyDictionary()


def costs_of(model: nn.Module, drafter: Hashable, context: int, batch: int = 1) -> Costs:
    """What is known of this model and drafter on its device, with these threads, at about this context, in tokens, of
    so many sequences together. Of a context that is new, what the nearest one knows of the drafter.
    """
    known = _costs.setdefault(model, {})
    place = (drafter, model.device, model.dtype, torch.get_num_threads(), batch)
    if (key := (*place, context.bit_length())) not in known:
        alike = [other for other in known if other[:-1] == place and known[other].measured]
        nearest = min(alike, key=lambda other: abs(other[-1] - key[-1]), default=None)
        known[key] = Costs() if nearest is None else known[nearest].elsewhere()
    return known[key]


@dataclass
class Policy:
    """Chooses trees for one generation.

    Attributes:
        costs: what rounds cost here and how right the drafter is, shared by the generations of a model and drafter.
        menu: the trees to choose from, besides drafting nothing; from small to large.
        shape: the tree to draft next.
        context: tokens of the prompt.
        _rounds, _drafts: so far, and those that drafted.
        _wait, _until: rounds without a draft to come next time, and the round that ends the present ones.
        _choice, _gap: the round that chooses next, and how many lay before it. The first drafts each choose, unless
            earlier generations have taught what drafts here are worth.
        _behind: the drafter has not seen the prompt, or the tokens of rounds that drafted nothing: its next draft
            costs more than those that follow.
        _unread: of the drafts of self.shape since the last choice, the tokens accepted and the scores: they are read
            together, for the next choice.
    """

    costs: Costs
    menu: tuple[TreeConfig, ...] = MENU
    shape: TreeConfig = MENU[2]
    context: int = 0
    _rounds: int = 0
    _wait: int = FIRST_WAIT
    _until: int = 0
    _choice: int = 0
    _gap: int = 1
    _behind: bool = True
    _drafts: int = 0
    _unread: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.costs.measured and self.costs.gains:
            self.shape, self._until, self._choice, self._gap = self.best(), EVERY, SELDOM, SELDOM

    @classmethod
    def of(cls, model: nn.Module, drafter: Drafter, own: TreeConfig, prompts: Tensor) -> "Policy":
        """For a generation that begins with the drafter's `own` tree, over these prompts, [B, P].

        Raises ValueError where the drafter cannot change its tree.
        """
        if drafter.scores_width == 0:
            raise ValueError('tree="auto" needs a drafter that scores its candidates (a SparrowDrafter)')
        menu = {shape for shape in (*MENU, own) if shape.width <= drafter.scores_width}
        by_size = tuple(sorted(menu, key=lambda shape: (shape.nodes, shape.depth)))
        start = own if own in menu else by_size[0]
        batch, context = prompts.shape
        return cls(costs_of(model, drafter.identity(), context, batch), by_size, start, context)

    def batch(self, model: nn.Module, drafter: Drafter, sequences: int) -> None:
        """So many sequences go on: what their rounds cost is known by itself, or begins as what was known before."""
        self._learn()
        costs = costs_of(model, drafter.identity(), self.context, sequences)
        if not costs.measured:
            vars(costs).update(copy.deepcopy(vars(self.costs)))
        self.costs = costs

    @property
    def largest(self) -> TreeConfig:
        """With room for each tree of the menu."""
        depth = max(shape.depth for shape in self.menu)
        return TreeConfig(max(shape.total for shape in self.menu), depth, MAX_NODES // depth)

    @property
    def candidates(self) -> int:
        """The most that a tree of the menu has."""
        return max(shape.candidates for shape in self.menu)

    def saw(self, accepted: Sequence[int], draft: float, rest: float, scores: Tensor, settled: bool = True) -> None:
        """What the round of self.shape did; chooses the next tree.

        Args:
            accepted: drafted tokens accepted, of each sequence.
            draft, rest: its seconds of drafting, and all others.
            scores: float32 [B, >= candidates], begins with the tree's candidates, see `expected`; of no use where
                nothing was drafted.
            settled: further rounds of this tree cost the same; one before its capture does not.
        """
        self._rounds += 1
        unsure = self._unsure
        if settled and not (self._behind and self.shape.nodes > 1):
            self.costs.saw(self.shape, draft, rest)
        self._behind = self.shape.nodes == 1
        if self.shape.nodes > 1:
            self._drafts += 1
            own = scores[:, : self.shape.candidates].numpy().copy()
            self._unread += zip(accepted, own, strict=True)
        if self.shape.nodes == 1:
            if self._rounds >= self._until:
                self.shape = self.best(drafts=True)
        elif self.costs.measured and (self._rounds >= self._choice or unsure):
            self._choose()

    @property
    def _unsure(self) -> bool:
        """Whether the next choice should not wait: a tree's cost is new, or nothing was drafted lately."""
        return not self.costs.sure(self.shape) or self._wait > FIRST_WAIT

    def _learn(self) -> None:
        if not self._unread:
            return
        counts, scores = zip(*self._unread, strict=True)
        self._unread.clear()
        own, foretold = self.menu.index(self.shape), expected(np.stack(scores), self.shape, self.menu)
        for accepted, trees in zip(counts, foretold, strict=True):
            self.costs.drafted(self.shape, trees[own], accepted)
        new = 0.4 if self._wait > FIRST_WAIT else 0.15  # drafts that are few count more
        for trees in foretold:
            self.costs.foretells(self.shape, dict(zip(self.menu, trees, strict=True)), new, ADDS)

    def _choose(self) -> None:
        self._learn()
        before, self.shape = self.shape, self.best()
        if self._drafts > EVERY:
            self._gap = EVERY if self.shape != before else max(EVERY, min(SELDOM, 2 * self._gap))
        self._choice = self._rounds + self._gap
        if self.shape.nodes == 1:
            self._until, self._wait = self._rounds + self._wait, min(2 * self._wait, LONGEST_WAIT)
        else:
            self._wait = FIRST_WAIT

    def best(self, drafts: bool = False) -> TreeConfig:
        """The tree of the greatest E / T; with `drafts`, among those that draft."""
        rates = {shape: self.costs.tokens(shape) / self.costs.seconds(shape) for shape in self.menu}
        if not drafts:
            rates[PLAIN] = (HOPE if self._drafts < TRIES else CLEARLY) / self.costs.seconds(PLAIN)
        return max(rates, key=lambda shape: rates[shape])
