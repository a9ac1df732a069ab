"""Which rows of an engine's step are true, which of them are text, and how they are numbered: the host's book.

An engine that batches continuously runs, for each request of a step, the target over positions start .. start +
scheduled - 1; of these the first `true` hold tokens that stay, the rest are rejected drafts. The row of position p is
FC(e_p ++ h_{p-1}), so that such a step allows the rows up to position start + true, whose token is known and not run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What an engine ran, one entry per request in the order of its states; on the host, int64 [B].

    Attributes:
        slots: the request's place in the drafter's pool, distinct.
        start: positions that were computed before.
        scheduled: positions that were run.
        true: those whose tokens stay.
        sampled: bool [B], the request drew a token, and wants drafts.
    """

    slots: Tensor
    start: Tensor
    scheduled: Tensor
    true: Tensor
    sampled: Tensor


@dataclass(frozen=True)
class Rows:
    """Rows to be made; host tensors, one entry per row.

    Attributes:
        request: int64, index into the step's requests.
        position: int64, its token's place in the sequence.
        state: int64, the row of the step's states that holds its h; -1 = a zero row; number of states + i = the state
            at the end of the prefix of the step's i-th restored request.
        index: int64, text rows before it = its row of the pool.
        place: int64, its number for the rotary embedding.
    """

    request: Tensor
    position: Tensor
    state: Tensor
    index: Tensor
    place: Tensor


@dataclass(frozen=True)
class Plan:
    """What a step asks of the drafter.

    Attributes:
        append: rows whose keys and values are to be written.
        draft: rows from which chains grow, one per request that drafts (where its text fits); the chain writes them.
        kept_state, kept_row: int64 [W], rows of the step's states whose tokens have rows, and these in the flattened
            pool: for the store.
        edges: int64 [X], rows of the step's states at the ends of blocks: for the store.
        restored: int64 [F], requests whose first rows are to be had from the store.
    """

    append: Rows
    draft: Rows
    kept_state: Tensor
    kept_row: Tensor
    edges: Tensor
    restored: Tensor


class TextRows:
    """The book: per slot of the pool, how many text tokens precede each position, and how far its rows are made.

    Args:
        slots: requests at once.
        max_len: longest sequence.
        capacity: rows per slot; a request with more text drafts nothing from there on.
        stride: rows of the pool per slot.
        block_size: tokens of one block of the engine's prefix cache.
        numbering: a drafter's `positions`, "text" or "sequence".
    """

    def __init__(self, slots: int, max_len: int, capacity: int, stride: int, block_size: int, numbering: str):
        self.before = torch.zeros(slots, max_len + 2, dtype=torch.int32)
        self.seen = torch.full((slots,), -1, dtype=torch.int64)
        self.capacity, self.stride, self.block_size, self.numbering = capacity, stride, block_size, numbering

    def open(self, slot: int, is_text: Tensor) -> None:
        """Gives a slot to a request whose prompt's text is bool [P]; what it generates is text."""
        row, p = self.before[slot], len(is_text)
        row[0] = 0
        torch.cumsum(is_text, 0, dtype=torch.int32, out=row[1 : p + 1])
        row[p + 1 :] = row[p] + torch.arange(1, len(row) - p, dtype=torch.int32)
        self.seen[slot] = -1

    def text_before(self, slot: int, position: int) -> Tensor:
        """Positions of text below `position`, as far as the pool holds them: int64 [n]."""
        row = self.before[slot, : position + 1]
        return (row[1:] > row[:-1]).nonzero()[:, 0][: self.capacity]

    def plan(self, step: Step) -> Plan:
        """What is to be made after a step; the book counts it as made."""
        known = step.start + step.true
        fresh = self.seen[step.slots] != step.start + 1  # new, resumed, or moved to another slot
        first = torch.where(fresh, step.start, step.start + 1)
        states = int(step.scheduled.sum())
        restored = (fresh & (step.start > 0)).nonzero()[:, 0]
        request, position = _ranges(first, known + 1 - step.sampled.long())
        append = self._rows(step, request, position, states, restored)
        chosen = step.sampled.nonzero()[:, 0]
        draft = self._rows(step, chosen, known[chosen], states, restored)
        request, position = _ranges(step.start, known)
        at = _first_state(step)[request] + position - step.start[request]
        text, index = self._text(step.slots[request], position)
        ends = position % self.block_size == self.block_size - 1
        self.seen[step.slots] = known + 1
        kept_row = (step.slots[request] * self.stride + index)[text]
        return Plan(append, draft, at[text], kept_row, at[ends], restored)

    def _text(self, slots: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each position has a row, and the number of rows before it."""
        index = self.before[slots, position]
        return (self.before[slots, position + 1] > index) & (index < self.capacity), index.long()

    def _rows(self, step: Step, request: Tensor, position: Tensor, states: int, restored: Tensor) -> Rows:
        """Those of these positions that are text and fit; request: sorted."""
        text, index = self._text(step.slots[request], position)
        request, position, index = request[text], position[text], index[text]
        start = step.start[request]
        state = _first_state(step)[request] + position - 1 - start
        # Only a fresh request has a row at its start. Off a block's end nobody kept the state: a zero row.
        edge = states + torch.searchsorted(restored, request)
        kept = (start > 0) & (start % self.block_size == 0)
        state = torch.where(position > start, state, torch.where(kept, edge, -1))
        return Rows(request, position, state, index, index if self.numbering == "text" else position)


def _first_state(step: Step) -> Tensor:
    """The row of the step's states at each request's start, int64 [B]."""
    return step.scheduled.cumsum(0) - step.scheduled


def _ranges(first: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """first[i] .. stop[i] - 1 of every i behind each other: (i, number), int64 [n]."""
    count = stop - first
    request = torch.repeat_interleave(torch.arange(len(count)), count)
    return request, first[request] + torch.arange(len(request)) - (count.cumsum(0) - count)[request]
