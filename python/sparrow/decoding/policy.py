"""tree="auto": which tree to draft next, from what rounds cost and from how sure the drafter was.

A pure function of measured numbers: a round of tree s is expected to emit E(s) tokens in T(s) seconds, and the tree of
the greatest E / T is drafted. E is 1 plus the probabilities that its nodes are accepted, from the drafter's own scores
(the joint log-probability of each candidate, as EAGLE-2 ranks them, arXiv 2406.16858), corrected per level by what was
accepted. T is measured, and interpolated for trees that have not run. Where no tree is worth its time nothing is
drafted, and a tree is tried again ever more rarely. It never changes a token: verification accepts the same tokens
whatever was drafted.
"""

import copy
import statistics
import weakref
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparrow.drafters.protocol import Drafter
from sparrow.tree import MAX_NODES, Root, TreeConfig

PLAIN = Root()
MENU = tuple(TreeConfig.parse(text) for text in ("2-2-1", "4-2-2", "8-3-4", "15-4-6", "25-5-8", "40-10-6"))
EVERY = 4  # rounds between choices, after as many that each make one
FIRST_WAIT, LONGEST_WAIT = 16, 128  # rounds without a draft before one is tried again: doubled each time it was in vain
ROW = 0.03  # what a further row adds to a verify pass of one row, before anything is measured
LEVEL = 0.12  # what a level of drafting costs, in verify passes of one row, before anything is measured


class Costs:
    """Seconds of a round by tree, measured: the medians of the last few, interpolated for the others; and how right the
    drafter is.

    A round costs draft(depth, width) + verify(nodes): the first is proportional to the depth, the second linear between
    the sizes that have run.

    Attributes:
        said, kept: by tree and level, the acceptances that the drafter foretold and those that came; older ones count
            less. What it foretells is its own, not the text's: later generations begin with it.
    """

    def __init__(self) -> None:
        self.said: dict[TreeConfig, list[float]] = {}
        self.kept: dict[TreeConfig, list[float]] = {}
        self._verify: dict[int, deque[float]] = {}
        self._level: dict[int, deque[float]] = {}  # per width: seconds of one level

    @property
    def measured(self) -> bool:
        """Whether a round has been seen."""
        return bool(self._verify)

    def saw(self, shape: TreeConfig, draft: float, rest: float) -> None:
        """A round of `shape` took `draft` seconds to draft and `rest` seconds for all else."""
        self._verify.setdefault(shape.nodes, deque(maxlen=9)).append(rest)
        if shape.nodes > 1:
            self._level.setdefault(shape.width, deque(maxlen=9)).append(draft / shape.depth)

    def right(self, shape: TreeConfig, level: int, menu: Sequence[TreeConfig]) -> float:
        """Acceptances per acceptance foretold: of this tree, or of the most alike in the menu that have run."""
        ran = [other for other in menu if other in self.said]
        near = min(abs(menu.index(other) - menu.index(shape)) for other in ran)
        alike = [other for other in ran if abs(menu.index(other) - menu.index(shape)) == near]
        said, kept = (sum(table[one][min(level, one.depth - 1)] for one in alike) for table in (self.said, self.kept))
        return kept / said

    def drafted(self, shape: TreeConfig, foretold: Sequence[float], accepted: int) -> None:
        """A round of `shape` foretold so much of each level, and `accepted` levels came."""
        said = self.said.setdefault(shape, [1.0] * len(foretold))  # a round beforehand in which it was right
        kept = self.kept.setdefault(shape, [1.0] * len(foretold))
        for level, gain in enumerate(foretold):
            said[level] = 0.95 * said[level] + gain
            kept[level] = 0.95 * kept[level] + (accepted > level)

    def seconds(self, shape: TreeConfig) -> float:
        """Of a round of `shape`, once any round has been measured."""
        known = {nodes: statistics.median(times) for nodes, times in self._verify.items()}
        verify = _between(known, shape.nodes)
        if shape.nodes == 1:
            return verify
        return verify + shape.depth * self._per_level(shape.width, _between(known, 1))

    def _per_level(self, width: int, row: float) -> float:
        known = {w: statistics.median(times) for w, times in self._level.items()}
        if not known:
            return LEVEL * row
        if width in known:
            return known[width]
        nearest = min(known, key=lambda w: (abs(w - width), w))
        return known[nearest]


def _between(known: dict[int, float], nodes: int) -> float:
    """Seconds of a verify pass of `nodes` rows: linear between measured sizes, ROW a row where only one is known."""
    if nodes in known:
        return known[nodes]
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


def expected(scores: Tensor, drafted: TreeConfig, menu: Sequence[TreeConfig]) -> list[list[float]]:
    """Per tree of `menu` and level: the sum of its nodes' probabilities, by a draft of `drafted`.

    A level that was not drafted counts as the last one times the ratio of the last two, at most 1.

    Args:
        scores: float32 [candidates of `drafted`], joint log-probabilities: `width` of level 1, then width * width of
            each further one, grouped by parent, best first.
    """
    width = drafted.width
    probability = scores.double().exp().nan_to_num(0.0)
    level = torch.ones(len(scores), dtype=torch.long)
    level[width:] = 2 + torch.arange(len(scores) - width) // (width * width)
    rank = torch.arange(len(scores))
    rank[width:] = torch.maximum((rank[width:] - width) % width, (rank[width:] - width) // width % width)
    return [_levels(probability, level, rank, drafted.depth, shape) for shape in menu]


def _levels(probability: Tensor, level: Tensor, rank: Tensor, drafted_depth: int, shape: TreeConfig) -> list[float]:
    if shape.nodes == 1:
        return []
    among = (rank < shape.width) & (level <= shape.depth)
    kept = torch.where(among, probability, -1.0).topk(min(shape.total, int(among.sum()))).indices
    sums = torch.zeros(drafted_depth + 1, dtype=torch.float64).index_add_(0, level[kept], probability[kept])
    levels = sums[1 : shape.depth + 1].clamp(max=1.0).tolist()
    while len(levels) < shape.depth:
        ratio = min(1.0, levels[-1] / levels[-2]) if len(levels) > 1 and levels[-2] > 0 else levels[-1]
        levels.append(levels[-1] * ratio)
    return levels


# Beside the models, as in targets/borrow.py.
_costs: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Costs]]" = weakref.WeakKeyDictionary()


def costs_of(model: nn.Module, drafter: Hashable, context: int, batch: int = 1) -> Costs:
    """What is known of this model and drafter on its device, with these threads, at about this context, in tokens, of
    so many sequences together.
    """
    key = (drafter, model.device, model.dtype, torch.get_num_threads(), context.bit_length(), batch)
    return _costs.setdefault(model, {}).setdefault(key, Costs())


@dataclass
class Policy:
    """Chooses trees for one generation.

    Attributes:
        costs: what rounds cost here and how right the drafter is, shared by the generations of a model and drafter.
        menu: the trees to choose from, besides drafting nothing; from small to large.
        shape: the tree to draft next.
        context: tokens of the prompt.
    """

    costs: Costs
    menu: tuple[TreeConfig, ...] = MENU
    shape: TreeConfig = MENU[2]
    context: int = 0
    _rounds: int = 0
    _wait: int = FIRST_WAIT
    _until: int = 0
    _gains: list[list[float]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, drafter: Drafter, own: TreeConfig, prompts: Tensor) -> "Policy":
        """For a generation that begins with the drafter's `own` tree, over these prompts, [B, P].

        Raises ValueError where the drafter cannot change its tree.
        """
        if drafter.scores_width == 0:
            raise ValueError('tree="auto" needs a drafter that scores its candidates (SparrowDrafter, text only)')
        menu = {shape for shape in (*MENU, own) if shape.width <= drafter.scores_width}
        by_size = tuple(sorted(menu, key=lambda shape: (shape.nodes, shape.depth)))
        start = own if own in menu else by_size[0]
        batch, context = prompts.shape
        return cls(costs_of(model, drafter.identity(), context, batch), by_size, start, context)

    def batch(self, model: nn.Module, drafter: Drafter, sequences: int) -> None:
        """So many sequences go on: what their rounds cost is known by itself, or begins as what was known before."""
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

    def saw(self, accepted: Sequence[int], draft: float, rest: float, scores: Tensor) -> None:
        """What the round of self.shape did; chooses the next tree.

        Args:
            accepted: drafted tokens accepted, of each sequence.
            draft, rest: its seconds of drafting, and all others.
            scores: float32 [B, >= candidates], begins with the tree's candidates, see `expected`; of no use where
                nothing was drafted.
        """
        self._rounds += 1
        if self._rounds > 1:  # the first draft reads the whole prompt
            self.costs.saw(self.shape, draft, rest)
        if self.shape.nodes > 1:
            for own, of in zip(accepted, scores, strict=True):
                self._learn(own, of[: self.shape.candidates])
        if self.shape.nodes == 1:
            if self._rounds >= self._until:
                self.shape = self.best(drafts=True)
        elif self._rounds > 1 and (self._rounds <= EVERY or self._rounds % EVERY == 0 or self._wait > FIRST_WAIT):
            self._choose()

    def _learn(self, accepted: int, scores: Tensor) -> None:
        (own, *others) = expected(scores, self.shape, (self.shape, *self.menu))
        new = 0.5 if self._wait > FIRST_WAIT else 0.25  # drafts that are few count more
        self.costs.drafted(self.shape, own, accepted)
        if not self._gains:
            self._gains = others
        self._gains = [
            [old + new * (gain - old) for old, gain in zip(before, now, strict=True)]
            for before, now in zip(self._gains, others, strict=True)
        ]

    def _choose(self) -> None:
        self.shape = self.best()
        if self.shape.nodes == 1:
            self._until, self._wait = self._rounds + self._wait, min(2 * self._wait, LONGEST_WAIT)
        else:
            self._wait = FIRST_WAIT

    def tokens(self, shape: TreeConfig) -> float:
        """E of one of the menu's trees."""
        gains = self._gains[self.menu.index(shape)] if self._gains else []
        return 1.0 + sum(min(1.0, gain * self.costs.right(shape, level, self.menu)) for level, gain in enumerate(gains))

    def best(self, drafts: bool = False) -> TreeConfig:
        """The tree of the greatest E / T; with `drafts`, among those that draft."""
        rates = {shape: self.tokens(shape) / self.costs.seconds(shape) for shape in self.menu}
        if not drafts:
            rates[PLAIN] = 1.0 / self.costs.seconds(PLAIN)
        return max(rates, key=lambda shape: rates[shape])
