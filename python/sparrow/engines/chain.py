"""Chains of drafts for a batch of requests, from text rows in a pool: all a drafter does after an engine's step."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sparrow.drafters.network import SparrowDrafter
from sparrow.engines.rows import Plan, Rows, Step, TextRows
from sparrow.engines.store import RowStore


class ChainDrafter:
    """A bound SparrowDrafter, its keys and values of text rows (one slot per request), and the book of them.

    Every slot takes part in each pass of the chain up to the highest that drafts, so that shapes depend on that number
    and on the length alone; a slot that does not draft writes nothing.

    Args:
        drafter: placed and bound to its target's tables.
        slots: requests at once.
        max_len: longest sequence.
        text_rows: text tokens a request may have and still draft.
        length: longest chain.
        block_size: tokens of one block of the engine's prefix cache.

    Raises:
        ValueError: the drafter reads more than text rows and one layer's states.
    """

    def __init__(self, drafter: SparrowDrafter, slots: int, max_len: int, text_rows: int, length: int, block_size: int):
        check_drafter(drafter)
        c, weight = drafter.config, drafter.weight
        self.drafter, self.length = drafter, length
        shape = (slots, text_rows + length, c.num_kv_heads, c.head_dim)
        # Written, not only asked for: on a CPU memory that is not counts nowhere, and grows while serving.
        self.keys, self.values = weight.new_empty(shape).zero_(), weight.new_empty(shape).zero_()
        self.book = TextRows(slots, max_len, text_rows, shape[1], block_size, c.positions)

    @torch.no_grad()
    def after(
        self,
        step: Step,
        tokens_at: Callable[[Tensor, Tensor], Tensor],
        states: Tensor,
        store: RowStore,
        kv_slots: Tensor,
        kv_slots_of: Callable[[int, Tensor], Tensor],
        length: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Makes the rows a step allows, and drafts for the requests that drew a token.

        Args:
            step: what the engine ran.
            tokens_at: (requests, positions), int64 [n] on the host -> the tokens there, integer [n] on any device; the
                drawn ones are among them.
            states: [T, E] of the positions that were run, in the order of the step's requests; rows may follow.
            store: where rows outlive their request.
            kv_slots: int64 [T], the target's KV slots of these positions.
            kv_slots_of: (request, positions int64 [n] on the host) -> their KV slots, int64 [n].
            length: drafts per request, at most the longest; 0 = none, rows alone.

        Returns:
            the requests that draft, int64 [n] on the host; their drafts, int64 [n, length], and the drafter's
            log-probabilities of these, float32 [n, length].
        """
        step = step if length else replace(step, sampled=torch.zeros_like(step.sampled))
        plan, device = self.book.plan(step), states.device
        ends = plan.edges.to(device)
        if len(ends):
            store.write_edges(kv_slots[ends], states[ends])
        rows = plan.append
        source = self._states(step, plan, states, store, kv_slots_of)
        if len(rows.request):
            slots = (step.slots[rows.request] * self.book.stride + rows.index).int()
            self.drafter.append(
                tokens_at(rows.request, rows.position).long().to(device), *source(rows),
                rows.place.to(device), slots.to(device), self.keys, self.values,
            )  # fmt: skip
        pool = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        if len(plan.kept_row):
            kept = plan.kept_row.to(device)
            store.write(kv_slots[plan.kept_state.to(device)], pool[0][kept], pool[1][kept])
        for request in plan.restored.tolist():  # after the write: a prefix may be one that this very step computed
            slot = int(step.slots[request])
            at = self.book.text_before(slot, int(step.start[request]))
            keys, values = store.read(kv_slots_of(request, at))
            self.keys[slot, : len(at)], self.values[slot, : len(at)] = keys, values
        who = plan.draft.request
        if not len(who):
            return who, torch.empty(0, length, dtype=torch.int64), torch.empty(0, length)
        chosen = tokens_at(who, plan.draft.position).long().to(device)
        return who, *self._chain(step, plan.draft, chosen, source(plan.draft), length)

    def _states(
        self, step: Step, plan: Plan, states: Tensor, store: RowStore, kv_slots_of: Callable[[int, Tensor], Tensor]
    ) -> Callable[[Rows], tuple[Tensor, Tensor]]:
        """A function that gives the row indices and states of Rows as `SparrowDrafter.extend` takes them."""
        run = int(step.scheduled.sum())
        source = states[:run]
        if len(plan.restored):
            at = [kv_slots_of(r, step.start[r : r + 1] - 1) for r in plan.restored.tolist()]
            source = torch.cat([source, store.read_edges(torch.cat(at))])

        def of(rows: Rows) -> tuple[Tensor, Tensor]:
            index = torch.where(rows.state < 0, -1, torch.arange(len(rows.state))).int()
            return index.to(source.device), self.drafter.reuse(source[rows.state.clamp(min=0).to(source.device)])

        return of

    def _chain(
        self, step: Step, rows: Rows, chosen: Tensor, source: tuple[Tensor, Tensor], length: int
    ) -> tuple[Tensor, Tensor]:
        slots, device = step.slots[rows.request], self.keys.device
        size = int(slots.max()) + 1
        table = torch.zeros(3, size, dtype=torch.int64)
        table[:, slots] = torch.stack([rows.place, rows.index, torch.ones_like(slots)])
        place, lengths, active = table.to(device).unbind(0)
        slots, lengths, active = slots.to(device), lengths.int(), active.int()
        tokens = torch.zeros(size, dtype=torch.int64, device=device)
        tokens[slots] = chosen
        index = torch.full((size,), -1, dtype=torch.int32, device=device)
        index[slots] = source[0]
        every = torch.arange(size, dtype=torch.int32, device=device)
        keys, values, hidden = self.keys[:size], self.values[:size], source[1]
        chain, confidence = [], []
        for level in range(length):
            out = self.drafter.extend(
                tokens[:, None], index[:, None], hidden, place[:, None] + level,
                keys, values, lengths + min(level, 1), tree_start=max(level - 1, 0), num_rows=active,
            )  # fmt: skip
            logp, ids = self.drafter.propose(out, 1)
            tokens, index, hidden = ids.view(size), every, self.drafter.reuse(out).flatten(0, 1)
            chain.append(tokens)
            confidence.append(logp.view(size))
        return torch.stack(chain, 1)[slots], torch.stack(confidence, 1)[slots]


def worth_verifying(confidence: Tensor, least: float) -> Tensor:
    """How many of each chain's drafts the drafter itself gives at least this chance of being reached, int64 [n].

    Args:
        confidence: float32 [n, length], log-probabilities along each chain.
        least: in [0, 1]; 0 = all of them.
    """
    return (confidence.double().cumsum(1).exp() >= least).sum(1)  # once below, always below


def check_drafter(drafter: SparrowDrafter) -> None:
    """Raises ValueError for a drafter that reads what an engine does not hand over."""
    c = drafter.config
    if c.visual != "none":
        raise ValueError(f"in an engine a drafter must read text rows alone (visual=none), got visual={c.visual}")
    if c.positions not in ("text", "sequence"):
        raise ValueError(f"in an engine positions must be text or sequence, got positions={c.positions}")
    if c.num_layers > 1:  # rows are appended by themselves, see SparrowDrafter.append
        raise ValueError(f"in an engine a drafter must have one layer, got num_layers={c.num_layers}")
    if c.fused_layers:
        raise ValueError(f"in an engine a drafter must reuse one layer's states, got fused_layers={c.fused_layers}")
    if c.hidden_layer != c.target["num_layers"]:
        raise ValueError(
            f"in an engine hidden_layer must be {c.target['num_layers']} (the last, normed), got {c.hidden_layer}"
        )
