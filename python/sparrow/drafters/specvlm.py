"""SpecVLM (arXiv 2508.16201), self-speculative: the target drafts for itself with a tenth of the visual tokens.

No training. After the prompt, the visual tokens that its text looks at are chosen; a second, smaller cache holds the
target's own rows of the text and of these. Every level of a static tree is one pass of the target over that cache. See
docs/rivals.md.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sparrow_ext
from sparrow.drafters.protocol import DecodeState, Drafter, Prompt
from sparrow.targets.adapter import Target
from sparrow.targets.cache import TargetCache
from sparrow.tree import DraftTree, TreeConfig

# 25 nodes, 5 levels: the tree of EAGLE (arXiv 2401.15077), which SpecVLM uses.
STATIC_TREE = ((4,), (3, 2, 2, 1), (3, 2, 2, 1), (3,), (2,))


@dataclass(frozen=True)
class SpecVLM:
    """Settings; give it to `sparrow.generate` as the drafter.

    Attributes:
        keep: share of the visual tokens that are kept, (0, 1]; rounded down, at least one.
        mass: share of the visual tokens' attention that the first ones kept hold together, [0, 1]; the rest of the
            budget is spread evenly over the others.
        children: the tree. children[l][i] is how many children the i-th node of level l has (level 0: the root), its
            likeliest next tokens; nodes without an entry have none.
    """

    keep: float = 0.1
    mass: float = 0.4
    children: tuple[tuple[int, ...], ...] = STATIC_TREE

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise ValueError(f"SpecVLM.keep must lie in (0, 1], got {self.keep}")
        if not 0 <= self.mass <= 1:
            raise ValueError(f"SpecVLM.mass must lie in [0, 1], got {self.mass}")
        nodes = 1
        for level, counts in enumerate(self.children):
            if not 1 <= len(counts) <= nodes or min(counts) < 1 or max(counts) > 32:
                raise ValueError(
                    f"SpecVLM.children[{level}] must hold 1 to {nodes} numbers (the nodes of that level) in [1, 32], "
                    f"got {counts}"
                )
            nodes = sum(counts)
        _ = self.shape  # checks the sizes

    @property
    def shape(self) -> TreeConfig:
        """The tree's total and depth, and its widest level."""
        sizes = [sum(counts) for counts in self.children]
        return TreeConfig(sum(sizes), len(sizes), max(sizes, default=0))

    def in_loop(self, target: Target, tree: TreeConfig | None) -> tuple[Drafter[Any], TreeConfig | None]:
        """See EntersLoop."""
        if tree is not None:
            raise ValueError(f"tree must be None: SpecVLM's tree is static (SpecVLM.children), got {tree}")
        return PrunedTarget(target, self), self.shape


def kept_tokens(scores: Tensor, keep: float, mass: float) -> Tensor:
    """Which visual tokens stay: int64 [K], ascending, K = max(1, floor(keep * M)).

    First the most attended ones, as few as hold `mass` of all attention (but at most K); then, evenly spaced among the
    others in their order, as many as are missing. Ties go to the earlier token.

    Args:
        scores: float [M], M >= 1, attention each token gets.
        keep, mass: see SpecVLM.
    """
    m = len(scores)
    budget = max(1, int(keep * m + 1e-9))
    values, order = scores.double().sort(descending=True, stable=True)
    enough = int((values.cumsum(0) < mass * values.sum()).sum()) + 1
    top = order[: min(enough, budget)]
    others = torch.ones_like(scores, dtype=torch.bool).index_fill_(0, top, False).nonzero()[:, 0]
    missing = budget - len(top)
    spread = torch.arange(missing, device=scores.device) * max(len(others) - 1, 0) // max(missing - 1, 1)
    return torch.cat([top, others[spread]]).sort().values


@dataclass
class PrunedDraft:
    """What the pruned target carries from round to round.

    Attributes:
        cache: its rows.
        covered: rows of the target's cache that it has, or has dropped.
    """

    cache: TargetCache
    covered: int


class PrunedTarget(Drafter[PrunedDraft]):
    """The target as its own drafter, in the loop. Takes one sequence.

    Args:
        target: the model that verifies, too.
        settings: see SpecVLM.
    """

    resumes = reads_cache = text_states = True

    def __init__(self, target: Target, settings: SpecVLM):
        self.target, self.settings = target, settings
        self.parent = torch.tensor([_breadth_first(settings.children)], dtype=torch.int32, device=target.device)
        self.anc, self.depth = sparrow_ext.tree_mask(self.parent)
        self.levels = _levels(settings.children, self.parent, self.depth)

    @torch.no_grad()
    def begin(self, prompt: Prompt) -> PrunedDraft:
        tokens, is_text = prompt.tokens, prompt.is_text
        if tokens.shape[0] != 1:
            raise ValueError(f"SpecVLM takes one sequence, got a batch of {tokens.shape[0]}")
        kept, visual = is_text[0].clone(), (~is_text[0]).nonzero()[:, 0]
        if len(visual):
            first = int(visual[-1]) + 1
            if first == tokens.shape[1]:
                raise ValueError(
                    "SpecVLM ranks visual tokens by the text behind them; this prompt ends with a visual token"
                )
            sums = self.target.attention_from(tokens, first, prompt.prefill, prompt.cache)
            kept[visual[kept_tokens(sums[0, visual], self.settings.keep, self.settings.mass)]] = True
        places = kept.nonzero()[:, 0]
        room = len(places) + prompt.max_new_tokens + self.settings.shape.nodes
        return PrunedDraft(prompt.cache.copy_of(places, room), tokens.shape[1])

    def keep(self, draft: PrunedDraft, error: Tensor) -> dict[str, Tensor]:
        """See Drafter: nothing; the visual tokens are ranked anew, by the text of the next prompt."""
        return {}

    def keeper(self) -> Hashable:
        return "nobody"

    def resume(self, kept: Mapping[str, Tensor], prompt: Prompt) -> PrunedDraft:
        return self.begin(prompt)

    def draft(self, state: DecodeState[PrunedDraft], shape: TreeConfig) -> DraftTree:
        own = state.draft
        # the rows of what was accepted are the target's own, from its verification
        length = state.cache.get_seq_length()
        own.cache.append_rows(state.cache.buffer[..., own.covered : length, :])
        own.covered = length
        tokens, noise = state.root[:, None], state.sampler.noise(state.length, self.target.vocab_size)
        for number, level in enumerate(self.levels):
            positions = state.position + self.depth[:, level.run]
            logits, _ = self.target.verify(tokens[:, level.run], level.anc, positions, own.cache, None)
            logits, bias = logits[:, -level.parents :], None
            if noise is not None:
                logits, bias = logits / noise.temperature[:, None, None], noise.at(number)
            _, ids, _ = sparrow_ext.topk_lse(logits, level.most, None, bias)
            tokens = torch.cat([tokens, ids.flatten(1)[:, level.taken]], dim=1)
        return DraftTree(tokens, self.parent, self.anc, self.depth, torch.full_like(self.depth[:, 0], tokens.shape[1]))


class _Level(NamedTuple):
    """One pass: the nodes it runs, and which of their likeliest next tokens are the next level.

    Attributes:
        run: int64 [n], all nodes with children, from the root down to the present level; the last `parents` of them are
            this level's. Their rows are not kept from pass to pass.
        anc: int64 [1, n, W], ancestors among these.
        parents, most: nodes that get children now, and the most of one.
        taken: int64 [m], the next level among the parents * most likeliest tokens.
    """

    run: Tensor
    anc: Tensor
    parents: int
    most: int
    taken: Tensor


def _levels(children: Sequence[Sequence[int]], parent: Tensor, depth: Tensor) -> list[_Level]:
    """The passes of a tree; parent, depth: int32 [1, N], nodes in breadth-first order."""
    levels: list[_Level] = []
    run: list[int] = []
    above, first = parent[0].tolist(), depth[0].tolist()
    for number, counts in enumerate(children):
        start = first.index(number)
        run += range(start, start + len(counts))
        parents = [run.index(above[node]) if node else -1 for node in run]
        anc, _ = sparrow_ext.tree_mask(torch.tensor([parents], dtype=torch.int32, device=parent.device))
        taken = [i * max(counts) + rank for i, count in enumerate(counts) for rank in range(count)]
        at, indices = (torch.tensor(values, device=parent.device) for values in (run, taken))
        levels.append(_Level(at, anc, len(counts), max(counts), indices))
    return levels


def _breadth_first(children: Sequence[Sequence[int]]) -> list[int]:
    """The parent of every node in breadth-first order, -1 for the root."""
    parents, start = [-1], 0
    for counts in children:
        level = [start + i for i, n in enumerate(counts) for _ in range(n)]
        start = len(parents)
        parents += level
    return parents
