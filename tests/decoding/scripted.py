"""Toy drafters with known acceptance, for exercising the loop: they know the answer and are right as often as told."""

from collections.abc import Callable

import torch
from torch import Tensor

import sparrow_ext
from sparrow.drafters.protocol import DecodeState, Drafter, Prompt
from sparrow.tree import DraftTree, TreeConfig


class ScriptedDrafter(Drafter[None]):
    """Proposes the true continuation down to `right(round)` levels, wrong tokens below, and distractors beside.

    Each level holds a wrong sibling, the scripted token, and a duplicate of the scripted token (never to be accepted):
    the tree must have total >= 3 * depth.

    Args:
        truth: int64 [P + n], the whole output to be expected.
        right: levels that are right in the given round.
        vocab_size: ids are drawn below it.
    """

    def __init__(self, truth: Tensor, right: Callable[[int], int], vocab_size: int = 280):
        self.truth, self.right, self.vocab_size = truth.tolist(), right, vocab_size
        self.round = 0

    def begin(self, prompt: Prompt) -> None:
        self.round = 0

    def draft(self, state: DecodeState[None], shape: TreeConfig) -> DraftTree:
        at, right = int(state.length[0]), self.right(self.round)
        self.round += 1
        tokens, parents, parent = [int(state.root[0])], [-1], 0
        for level in range(shape.depth):
            true = self.truth[at + level] if at + level < len(self.truth) else 0
            wrong = (true + 1 + level) % self.vocab_size
            scripted = true if level < right else (true + 7) % self.vocab_size
            tokens += [wrong, scripted, scripted]
            parents += [parent] * 3
            parent = len(tokens) - 2
        used = len(tokens)
        tokens += [0] * (shape.nodes - used)
        parents += [-1] * (shape.nodes - used)
        parent_tensor = torch.tensor([parents], dtype=torch.int32)
        anc, depth = sparrow_ext.tree_mask(parent_tensor)
        return DraftTree(torch.tensor([tokens]), parent_tensor, anc, depth, torch.tensor([used], dtype=torch.int32))
