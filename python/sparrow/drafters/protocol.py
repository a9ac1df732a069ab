"""What the decode loop asks of a drafter, and the state it carries from round to round.

The state's invariant at the start of a round (contract of every drafter): the target's cache covers all emitted tokens
but the last; the last one is the root of the next tree.
"""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

import sparrow_ext
from sparrow.sampling import Sampler
from sparrow.targets.adapter import Layers, Prefill
from sparrow.targets.cache import TargetCache
from sparrow.tree import DraftTree, TreeConfig


@dataclass
class Pending:
    """Emitted tokens whose true rows the drafter has not seen yet; the last one is the round's root.

    Attributes:
        tokens: int64 [B, T].
        row_index: int32 [B, T], the row of `hidden` that holds each token's h_{t-1}; -1 = none.
        hidden: [R, E], target states.
        positions: int64 [B, T], the target's position ids of the tokens (one axis).
        num_rows: int32 [B], tokens in use (T where all are).
    """

    tokens: Tensor
    row_index: Tensor
    hidden: Tensor
    positions: Tensor
    num_rows: Tensor


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
