"""The decode loop: draft a tree, verify it in one pass, accept the longest path, commit it.

The state's invariant at the start of a round (contract of every drafter): the target's cache covers all emitted tokens
but the last; the last one is the root of the next tree.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

import sparrow_ext
from sparrow.draft import DraftCache, Pending, catch_up, grow, text_rows
from sparrow.drafter import SparrowDrafter
from sparrow.sampling import Sampler
from sparrow.stats import Clock
from sparrow.targets.adapter import Layers, Prefill, Target
from sparrow.targets.cache import TargetCache
from sparrow.tree import DraftTree, TreeConfig


@dataclass
class DecodeState:
    """Everything a generation carries from round to round.

    Attributes:
        cache: the target's; covers all emitted tokens but the roots.
        root: int64 [B], emitted and not yet run.
        length: int64 [B], tokens so far, prompt and root included = absolute position of the next drawn token.
        position: int64 [..., B, 1], the root's position ids in the target.
        pending: what the drafter has not seen yet.
        sampler: temperature, seeds, seen tokens, processors.
        draft: the drafter's own state.
        error: the CUDA operators' error word, read with each round's tokens.
    """

    cache: TargetCache
    root: Tensor
    length: Tensor
    position: Tensor
    pending: Pending
    sampler: Sampler
    draft: object = None
    error: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.error = sparrow_ext.error_word(self.root.device)


class Drafter(Protocol):
    """What the loop asks of a drafter; subclass it.

    Attributes:
        hidden_layer: which target states it wants, if any (several: joined).
        visual_layer: the layer of the states it wants as Prefill.visual, if any.
    """

    hidden_layer: Layers = None
    visual_layer: int | None = None

    def begin(self, prompt: Tensor, is_text: Tensor, prefill: Prefill, state: DecodeState, max_new_tokens: int) -> None:
        """Sets up state.draft after the prompt's prefill."""

    def draft(self, state: DecodeState, shape: TreeConfig) -> DraftTree:
        """A tree below state.root; consumes state.pending."""


class TextDrafter(Drafter):
    """SparrowDrafter in the loop: text rows only, whatever the prompt's visual length."""

    def __init__(self, drafter: SparrowDrafter):
        self.drafter = drafter
        self.hidden_layer = drafter.config.state_layers

    def begin(self, prompt: Tensor, is_text: Tensor, prefill: Prefill, state: DecodeState, max_new_tokens: int) -> None:
        state.pending = text_rows(prompt, is_text, prefill.hidden, prefill.text_position, state.root)
        rows = state.pending.tokens.shape[1] + max_new_tokens
        state.draft = DraftCache.empty(self.drafter, prompt.shape[0], rows)

    def draft(self, state: DecodeState, shape: TreeConfig) -> DraftTree:
        assert isinstance(state.draft, DraftCache)
        out, position = catch_up(self.drafter, state.pending, state.draft, state.error)
        return grow(self.drafter, state.root, out, position, state.draft, shape, state.error)


class NoDrafter(Drafter):
    """Plain decoding through the same loop, operators and cache: every tree is its root."""

    def begin(self, prompt: Tensor, is_text: Tensor, prefill: Prefill, state: DecodeState, max_new_tokens: int) -> None:
        pass

    def draft(self, state: DecodeState, shape: TreeConfig) -> DraftTree:
        b, device = state.root.shape[0], state.root.device
        parent = torch.full((b, 1), -1, dtype=torch.int32, device=device)
        anc, depth = sparrow_ext.tree_mask(parent, state.error)
        return DraftTree(state.root[:, None], parent, anc, depth, torch.ones_like(depth[:, 0]))


@torch.no_grad()
def decode_round(
    target: Target, drafter: Drafter, state: DecodeState, shape: TreeConfig, clock: Clock, emit: Callable[[int], bool]
) -> tuple[list[int], list[int]]:
    """One round. Returns the first sequence's tokens and each sequence's path length (accepted tokens + 1).

    The only host synchronisation is `fetch` (a processor that is not an operator adds one per visited node).
    """
    with clock.stage("draft"):
        tree = drafter.draft(state, shape)
    with clock.stage("verify"):
        positions = state.position + tree.depth
        logits, hidden = target.verify(tree.tokens, tree.anc, positions, state.cache, drafter.hidden_layer)
    with clock.stage("sample"):
        chosen = state.sampler.choose(logits, tree, state.length, emit)
        num_path, path, tokens = sparrow_ext.tree_accept(
            tree.tokens, tree.parent, chosen, tree.num_nodes, max_path=shape.max_path, error=state.error
        )
    with clock.stage("commit"):
        lengths = torch.empty_like(state.cache.lengths)
        sparrow_ext.kv_commit(state.cache.by_row, path, num_path, state.cache.lengths, lengths, error=state.error)
        counts, emitted = fetch(num_path, tokens, state.error)
        state.cache.commit(max(counts), lengths)
        advance(state, num_path, path, tokens, hidden, max(counts))
    return emitted, counts


def fetch(num_path: Tensor, tokens: Tensor, error: Tensor) -> tuple[list[int], list[int]]:
    """The round's host synchronisation: path lengths [B], and the first sequence's emitted tokens.

    Raises RuntimeError where an operator of the round set a bit of `error` (int32 [1]).
    """
    words = error.long().expand(len(tokens), 1)
    rows = torch.cat([words, num_path[:, None].long(), tokens], dim=1).tolist()
    sparrow_ext.raise_for_error(rows[0][0])
    return [row[1] for row in rows], rows[0][2 : 2 + rows[0][1]]


def advance(state: DecodeState, num_path: Tensor, path: Tensor, tokens: Tensor, hidden: Tensor, most: int) -> None:
    """Moves the state behind the accepted path: the last emitted token is the new root."""
    b, n = hidden.shape[:2]
    batch = torch.arange(b, device=path.device)[:, None]
    steps = torch.arange(most, device=path.device)
    position = state.position[-1] if state.position.dim() == 3 else state.position
    state.pending = Pending(
        tokens=tokens[:, :most].clamp(min=0),
        row_index=(path[:, :most].clamp(min=0) + batch * n).int(),
        hidden=hidden.flatten(0, 1),
        positions=position + 1 + steps,
        num_rows=num_path,
    )
    state.sampler.see(tokens[:, :most])
    state.root = tokens.gather(1, (num_path - 1).long()[:, None])[:, 0]
    state.length = state.length + num_path
    state.position = state.position + num_path[:, None]
