"""tree="auto": which tree to draft next, from what rounds cost and from how sure the drafter was.

A pure function of measured numbers: a round of tree s is expected to emit E(s) tokens in T(s) seconds, and the tree of
the greatest E / T is drafted. E is 1 plus the probabilities that its nodes are accepted, from the drafter's own scores
(the joint log-probability of each candidate, as EAGLE-2 ranks them, arXiv 2406.16858), corrected per level by what was
accepted. T is measured, and interpolated for trees that have not run (both in costs.py). Where no tree is worth its
time nothing is drafted, and a tree is tried again ever more rarely. It never changes a token: verification accepts the
same tokens whatever was drafted.
"""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from sparrow.decoding.costs import PLAIN, Costs, costs_of
from sparrow.drafters.protocol import Drafter
from sparrow.tree import MAX_NODES, TreeConfig

# With the root, whole fours of rows: those the CPU kernels multiply together.
SHAPES = ("3-1-3", "3-3-1", "7-3-3", "15-4-6", "23-5-8", "39-10-6")
MENU = tuple(TreeConfig.parse(text) for text in SHAPES)
# Seconds between choices, each of which costs about a millisecond with what it drives out of the processor's caches; in
# rounds at least EVERY and at most SELDOM, and EVERY where the tree is less than so much faster than plain decoding.
APART = 0.1
EVERY, SELDOM, DOUBTFUL = 4, 32, 1.25
FIRST_WAIT, LONGEST_WAIT = 8, 128  # rounds without a draft before one is tried again: doubled each time it was in vain
TRIES, HOPE = 8, 0.8  # the first drafts, in which a tree that is expected at this share of plain speed is drafted
CLEARLY = 0.95  # the same share later
NEW, RARE = 0.15, 0.4  # weight of a draft in what is foretold, and of one where drafts are few
ADDS = 0.3  # the same in what wider trees add to narrower ones


@dataclass
class Policy:
    """Chooses trees for one generation.

    Attributes:
        costs: what rounds cost here and how right the drafter is, shared by the generations of a model and drafter. Its
            menu has the trees to choose from, besides drafting nothing.
        shape: the tree to draft next.
        context: tokens of the prompt.
        trees: rounds by tree.
        _rounds, _drafts: so far, and those that drafted.
        _wait, _until: rounds without a draft to come next time, and the round that ends the present ones.
        _choice: the round that chooses next. The first drafts each choose, unless earlier generations have taught what
            drafts here are worth.
        _behind: the drafter has not seen the prompt, or the tokens of rounds that drafted nothing: its next draft
            costs more than those that follow.
        _worth: speed expected of the last choice, over plain decoding's.
    """

    costs: Costs
    shape: TreeConfig = MENU[2]
    context: int = 0
    trees: Counter[TreeConfig] = field(default_factory=Counter)
    _rounds: int = 0
    _wait: int = FIRST_WAIT
    _until: int = 0
    _choice: int = 0
    _behind: bool = True
    _drafts: int = 0
    _worth: float = 0.0

    def __post_init__(self) -> None:
        self._learn()
        if self.costs.measured and self.costs.gains is not None:
            self.shape, self._until = self.best(), EVERY
            self._choice = self._gap(self.costs.seconds([self.shape])[0])

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
        return cls(costs_of(model, drafter.identity(), by_size, context, batch), start, context)

    def batch(self, model: nn.Module, drafter: Drafter, sequences: int) -> None:
        """So many sequences go on: what their rounds cost is known by itself, or begins as what was known before."""
        self._learn()
        costs = costs_of(model, drafter.identity(), self.menu, self.context, sequences)
        if not costs.measured:
            vars(costs).update(copy.deepcopy(vars(self.costs)))
        self.costs = costs

    @property
    def menu(self) -> tuple[TreeConfig, ...]:
        """From small to large."""
        return self.costs.menu

    @property
    def largest(self) -> TreeConfig:
        """With room for each tree of the menu."""
        depth = max(shape.depth for shape in self.menu)
        return TreeConfig(max(shape.total for shape in self.menu), depth, MAX_NODES // depth)

    @property
    def candidates(self) -> int:
        """The most that a tree of the menu has."""
        return max(shape.candidates for shape in self.menu)

    def saw(
        self, accepted: Sequence[int], draft: float, rest: float, scores: Tensor | np.ndarray, settled: bool = True
    ) -> None:
        """What the round of self.shape did; chooses the next tree.

        Args:
            accepted: drafted tokens accepted, of each sequence.
            draft, rest: its seconds of drafting, and all others.
            scores: float32 [B, >= candidates] on the host, begins with the tree's candidates, see `costs.expected`; not
                written over later; of no use where nothing was drafted.
            settled: further rounds of this tree cost the same; one before its capture does not.
        """
        self._rounds += 1
        shape, costs, unsure = self.shape, self.costs, self._unsure
        self.trees[shape] += 1
        alone = shape.nodes == 1
        if settled and (alone or not self._behind):
            costs.saw(shape, draft, rest)
        self._behind = alone
        if not alone:
            self._drafts += 1
            costs.unread.append((shape, accepted, scores))
            if costs.measured and (self._rounds >= self._choice or unsure):
                self._choose(draft + rest)
        elif self._rounds >= self._until:
            self.shape = self.best(drafts=True)

    @property
    def _unsure(self) -> bool:
        """Whether the next choice should not wait: a tree's cost is new, or nothing was drafted lately."""
        return not self.costs.sure(self.shape) or self._wait > FIRST_WAIT

    def _learn(self) -> None:
        self.costs.learn(RARE if self._wait > FIRST_WAIT else NEW, ADDS)

    def _choose(self, seconds: float) -> None:
        """After a round of so many seconds."""
        self._learn()
        self.shape = self.best()
        self._choice = self._rounds + (self._gap(seconds) if self._drafts > EVERY else 1)
        if self.shape.nodes == 1:
            self._until, self._wait = self._rounds + self._wait, min(2 * self._wait, LONGEST_WAIT)
        else:
            self._wait = FIRST_WAIT

    def _gap(self, seconds: float) -> int:
        """Rounds of so many seconds to the next choice."""
        if self._worth < DOUBTFUL:
            return EVERY
        return max(EVERY, min(SELDOM, math.ceil(APART / seconds)))

    def best(self, drafts: bool = False) -> TreeConfig:
        """The tree of the greatest E / T; with `drafts`, among those that draft."""
        *seconds, plain = self.costs.seconds((*self.menu, PLAIN))
        rates = self.costs.tokens() / np.array(seconds)
        shape = int(rates.argmax())
        self._worth = rates[shape] * plain
        alone = (HOPE if self._drafts < TRIES else CLEARLY) / plain
        return self.menu[shape] if drafts or rates[shape] >= alone else PLAIN
