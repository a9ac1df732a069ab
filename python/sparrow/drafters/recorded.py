"""What a generation drafted, round by round, for whoever wants to look at it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparrow.drafters.protocol import DecodeState, Drafter, EntersLoop, Pending, Prompt
from sparrow.drafters.text import NoDrafter
from sparrow.targets.adapter import Target
from sparrow.tree import DraftTree, TreeConfig


@dataclass(frozen=True)
class Round:
    """One round of one sequence.

    Attributes:
        emitted: the tokens it emitted; accepted: drafted tokens accepted, before any stop; seconds: wall seconds.
        tokens, parent: of the tree's nodes in use; node 0 is the root, its parent -1.
        probability: of each node and all above it, by the drafter; 1 at the root. At T > 0 that the target draws them
            with the noise of their places. None = the drafter gives none.
        path: the nodes that were accepted and emitted, from the root (not in it) down.
    """

    emitted: list[int]
    accepted: int
    seconds: float
    tokens: list[int]
    parent: list[int]
    probability: list[float] | None
    path: list[int]


class Recorder:
    """A drafter, with every tree that it drafts kept: generate(model, recorder, on_round=recorder.on_round, ...).

    For one generation of one sequence: batches and sessions refuse it. Trees are copied where they are, and read on the
    host when `rounds` is asked for. On a GPU its rounds are launched one by one, as with capture=False: what is
    replayed drafts unseen.
    """

    def __init__(self, drafter: EntersLoop | None):
        self.drafter = drafter
        self._trees: list[DraftTree] = []
        self._rounds: list[tuple[list[int], int, float]] = []

    def in_loop(self, target: Target, tree: TreeConfig | None) -> tuple[Drafter[Any], TreeConfig | None]:
        """See EntersLoop."""
        inner, shape = (self.drafter or NoDrafter()).in_loop(target, tree)
        return _Recorded(inner, self._trees), shape

    def on_round(self, tokens: list[int], accepted: int, seconds: float) -> None:
        """See generate."""
        self._rounds.append((list(tokens), accepted, seconds))

    def rounds(self) -> list[Round]:
        """All rounds so far.

        Raises:
            ValueError: on_round was not given to generate, or the recorder served more than one generation.
        """
        if len(self._rounds) != len(self._trees):
            raise ValueError(
                f"a Recorder needs its on_round in generate, too: {len(self._trees)} trees, {len(self._rounds)} rounds"
            )
        return [_round(*told, tree) for told, tree in zip(self._rounds, self._trees, strict=True)]


class _Recorded(Drafter[Any]):
    """The drafter in the loop. Its identity is None: what is replayed does not come by here."""

    def __init__(self, inner: Drafter[Any], trees: list[DraftTree]):
        self.inner, self.trees = inner, trees
        self.hidden_layer, self.visual_layer = inner.hidden_layer, inner.visual_layer
        self.text_states, self.reads_cache = inner.text_states, inner.reads_cache
        self.scores_width = inner.scores_width

    def begin(self, prompt: Prompt) -> Any:
        return self.inner.begin(prompt)

    def draft(self, state: DecodeState[Any], shape: TreeConfig) -> DraftTree:
        tree = self.inner.draft(state, shape)
        self.trees.append(DraftTree(*(None if t is None else t[:1].clone() for t in tree)))  # type: ignore[arg-type]
        return tree

    def accept(self, draft: Any, accepted: Pending) -> None:
        self.inner.accept(draft, accepted)


def _round(emitted: list[int], accepted: int, seconds: float, tree: DraftTree) -> Round:
    used = int(tree.num_nodes[0])
    tokens, parent = tree.tokens[0, :used].tolist(), tree.parent[0, :used].tolist()
    probability = None if tree.scores is None else [1.0, *_kept(tree.scores[0], used - 1)]
    return Round(emitted, accepted, seconds, tokens, parent, probability, walk(tokens, parent, emitted[:accepted]))


def _kept(scores: Tensor, count: int) -> list[float]:
    """The candidates that tree_rerank keeps as nodes 1, 2, ...: the best, the first among equals, in their order."""
    order = torch.sort(scores.nan_to_num(-torch.inf).double(), descending=True, stable=True).indices[:count]
    return scores[order.sort().values].exp().tolist()


def walk(tokens: list[int], parent: list[int], accepted: list[int]) -> list[int]:
    """The nodes of these tokens below the root, as tree_accept walks: the first child that has the token."""
    path, at = [], 0
    for token in accepted:
        at = next(i for i in range(1, len(tokens)) if parent[i] == at and tokens[i] == token)
        path.append(at)
    return path
