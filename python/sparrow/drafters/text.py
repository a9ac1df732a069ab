"""One round of drafting: catch up with what was accepted, then grow a tree level by level."""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sparrow_ext
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.protocol import DecodeState, Drafter, Pending, Prompt
from sparrow.sampling import Noise, Sampler
from sparrow.targets.adapter import Target
from sparrow.tree import MAX_NODES, DraftTree, TreeConfig

BUCKET = 1024  # a cache's rows are a multiple of it
# A drafter is less sure than its target, so that the noise would move its choice more often: with less of it they agree
# more often. Best on dev prompts, where 0.7 to 0.85 are much alike (docs/sampling.md).
NOISE_WEIGHT = 0.8


@dataclass
class DraftCache:
    """The drafter's keys and values, text rows only unless it is one of the rivals (see visual.py).

    Attributes:
        keys, values: [num_layers * B, capacity, K, D], layer by layer.
        lengths: int32 [B], rows written from true target states; tree rows behind them are scratch.
        skipped: int32 [B], places of the sequence that count in the numbering of rows and have none; None = 0.
        summary: [B, 1, E], the video's global vector in every state (visual=compressed); None = there is none.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    skipped: Tensor | None = None
    summary: Tensor | None = None

    def select(self, order: Tensor) -> "DraftCache":
        """That of these sequences, int64 [B']."""
        batch = len(self.lengths)
        rows = torch.arange(0, len(self.keys), batch, device=order.device)[:, None] + order
        keys, values = (t[rows.flatten()] for t in (self.keys, self.values))
        skipped, summary = (None if t is None else t[order] for t in (self.skipped, self.summary))
        return DraftCache(keys, values, self.lengths[order], skipped, summary)

    @classmethod
    def empty(cls, drafter: SparrowDrafter, batch: int, text_rows: int) -> "DraftCache":
        """Room for `text_rows` true rows and a tree behind them, or a few more: captured rounds know the capacity."""
        c, w = drafter.config, drafter.weight
        capacity = -(-(text_rows + MAX_NODES) // BUCKET) * BUCKET
        shape = (c.num_layers * batch, capacity, c.num_kv_heads, c.head_dim)
        return cls(w.new_empty(shape), w.new_empty(shape), torch.zeros(batch, dtype=torch.int32, device=w.device))


def text_rows(
    input_ids: Tensor, is_text: Tensor, hidden: Tensor, positions: Tensor, root: Tensor, lengths: Tensor | None = None,
    places: Tensor | None = None,
) -> Pending:  # fmt: skip
    """The prompt's text rows and the first emitted token, as the drafter's first catch-up.

    Args:
        input_ids: int64 [B, P]; is_text: bool [B, P]; positions: int64 [B, P].
        hidden: [B, R, E], target states.
        root: int64 [B], the token drawn from the prompt's last logits.
        lengths: int64 [B], tokens of each prompt; None = P.
        places: int64 [R], ascending, of which tokens `hidden` is; None = of all. A row whose token before has no state
            (visual_drop_layer) gets that of the last one before it that has.
    """
    b, p = input_ids.shape
    last = (torch.full_like(root, p) if lengths is None else lengths)[:, None] - 1
    most = int(is_text.sum(1).max())  # prefill's own host synchronisation
    index, count = sparrow_ext.text_compact(is_text, (last[:, 0] + 1).int(), most)
    slot = torch.arange(most, device=root.device).expand(b, most)
    at = torch.where(slot < count[:, None], index, 0).long()
    tokens, position = input_ids.gather(1, at), positions.gather(1, at)
    # The root follows each sequence's own last text row.
    tokens = torch.cat([tokens, tokens.new_zeros(b, 1)], dim=1).scatter(1, count[:, None].long(), root[:, None])
    position = torch.cat([position, position.new_zeros(b, 1)], 1).scatter(
        1, count[:, None].long(), positions.gather(1, last) + 1
    )
    before = torch.cat([at - 1, at.new_zeros(b, 1)], dim=1).scatter(1, count[:, None].long(), last)
    if places is not None:
        before = torch.searchsorted(places, before, right=True) - 1
    rows = torch.where(before >= 0, before + torch.arange(b, device=root.device)[:, None] * hidden.shape[1], -1)
    return Pending(tokens, rows.int(), hidden.flatten(0, 1), position, count + 1)


def rows_of_text(drafter: SparrowDrafter, is_text: Tensor) -> Tensor:
    """bool [B, P], the text tokens of a prompt that are rows: all, or all but its first token (first_row=False)."""
    if drafter.config.first_row:
        return is_text
    return is_text & (torch.arange(is_text.shape[1], device=is_text.device) > 0)


@torch.no_grad()
def catch_up(
    drafter: SparrowDrafter, pending: Pending, cache: DraftCache, error: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Writes the pending tokens' true rows into the cache. error: the operators' error word.

    Returns:
        the last row's output [B, 1, E] and the position of the tree's first level, int64 [B, 1].
    """
    t = pending.tokens.shape[1]
    if drafter.config.positions == "target":
        positions = pending.positions
    else:
        first = cache.lengths if cache.skipped is None else cache.lengths + cache.skipped
        positions = first[:, None].long() + torch.arange(t, device=pending.tokens.device)
    hidden = drafter.reuse(pending.hidden.unflatten(0, (len(pending.tokens), -1)), cache.summary).flatten(0, 1)
    out = drafter.extend(
        pending.tokens.contiguous(), pending.row_index.contiguous(), hidden, positions.contiguous(),
        cache.keys, cache.values, cache.lengths, tree_start=0, num_rows=pending.num_rows, error=error,
    )  # fmt: skip
    cache.lengths.add_(pending.num_rows)
    last = (pending.num_rows - 1).long()[:, None]
    return out.gather(1, last[..., None].expand(-1, 1, out.shape[2])), positions.gather(1, last) + 1


@torch.no_grad()
def grow(
    drafter: SparrowDrafter,
    root: Tensor,
    out: Tensor,
    position: Tensor,
    cache: DraftCache,
    shape: TreeConfig,
    error: Tensor | None = None,
    noise: Noise | None = None,
) -> DraftTree:
    """The dynamic tree below `root`: every level expands the best `width` nodes, then all candidates are re-ranked.

    Args:
        root: int64 [B].
        out: [B, 1, E], the drafter's output at the root.
        position: int64 [B, 1], position of the first level.
        cache: tree rows are written behind its text rows and forgotten.
        shape: the tree's size.
        error: the operators' error word.
        noise: of the target's draws at each level; None: it decodes greedily, or nobody knows.
    """
    b, device = root.shape[0], root.device
    width = min(shape.width, drafter.num_draft_tokens)
    candidates = width + (shape.depth - 1) * width * width
    score = torch.zeros(b, 1, dtype=torch.float32, device=device)
    index = torch.full((b, 1), -1, dtype=torch.int32, device=device)
    anc = torch.zeros(b, 1, max(1, -(-width * shape.depth // 64)), dtype=torch.int64, device=device)
    history = (
        torch.full((b, candidates), -torch.inf, dtype=torch.float32, device=device),
        torch.zeros(b, candidates, dtype=torch.int64, device=device),
        torch.full((b, candidates), -1, dtype=torch.int32, device=device),
    )
    for level in range(shape.depth):
        logp, ids = drafter.propose(out, width, noise, level)
        tokens, rows, score, index, anc = sparrow_ext.tree_expand(
            logp, ids, score, index, anc, level, width, *history, error=error
        )
        if level < shape.depth - 1:
            out = drafter.extend(
                tokens, rows, drafter.reuse(out, cache.summary).flatten(0, 1), (position + level).expand(b, width),
                cache.keys, cache.values, cache.lengths, tree_start=level * width, anc=anc, error=error,
            )  # fmt: skip
    tree = sparrow_ext.tree_rerank(root, *history, num_nodes=shape.nodes, error=error)
    return DraftTree(*tree, scores=history[0])


def noise_for(drafter: SparrowDrafter, sampler: Sampler, length: Tensor, weight: float = NOISE_WEIGHT) -> Noise | None:
    """What `grow` takes, of the draws from the absolute position `length`, int64 [B], on; None in greedy decoding."""
    return sampler.noise(length, drafter.num_draft_tokens, drafter.id_map, weight)


def root_alone(state: DecodeState) -> DraftTree:
    """The tree of plain decoding."""
    parent = torch.full_like(state.root[:, None], -1, dtype=torch.int32)
    anc, depth = sparrow_ext.tree_mask(parent, state.error)
    return DraftTree(state.root[:, None], parent, anc, depth, torch.ones_like(depth[:, 0]))


@dataclass
class TextDraft:
    """What a SparrowDrafter carries from round to round.

    Attributes:
        cache: its keys and values.
        pending: what it has not seen yet: the prompt's text rows and the first token, then what each round accepts.
        waiting: what it has not seen of rounds before that drafted nothing, a token each.
    """

    cache: DraftCache
    pending: Pending
    waiting: list[Pending] = field(default_factory=list)

    def all_pending(self) -> Pending:
        """What is waiting and what is pending, as one; nothing waits then."""
        parts, self.waiting = [*self.waiting, self.pending], []
        return parts[0] if len(parts) == 1 else Pending.joined(parts)


class TextDrafter(Drafter[TextDraft]):
    """SparrowDrafter in the loop: text rows only, whatever the prompt's visual length."""

    takes_batches = resumes = text_states = True

    def __init__(self, drafter: SparrowDrafter):
        self.drafter = drafter
        self.hidden_layer = drafter.config.state_layers
        self.scores_width = drafter.num_draft_tokens

    def identity(self) -> Hashable:
        """See Drafter: the settings, and where the weights are."""
        own, rows = self.drafter, self.drafter.tables.draft_rows
        tensors = [*own.parameters(), *own.buffers(), *([] if rows is None else [rows])]
        return repr(own.config), *(t.data_ptr() for t in tensors)

    def begin(self, prompt: Prompt) -> TextDraft:
        prefill = prompt.prefill
        is_text = rows_of_text(self.drafter, prompt.is_text)
        pending = text_rows(
            prompt.tokens, is_text, prefill.hidden, prefill.text_position, prompt.root, prompt.count, prefill.places
        )
        b, rows = pending.tokens.shape
        return TextDraft(DraftCache.empty(self.drafter, b, rows + prompt.max_new_tokens), pending)

    def keep(self, draft: TextDraft, error: Tensor) -> dict[str, Tensor]:
        """See Drafter: the rows of all tokens, the emitted last one's too."""
        catch_up(self.drafter, draft.all_pending(), draft.cache, error)
        rows = int(draft.cache.lengths.max())
        return {"keys": draft.cache.keys[:, :rows].clone(), "values": draft.cache.values[:, :rows].clone()}

    def fingerprint(self) -> dict[str, object]:
        """See Drafter: a hash of its settings and weights."""
        digest = hashlib.sha256(repr(self.drafter.config).encode())
        for name, value in sorted(self.drafter.state_dict().items()):
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
        return {"hash": digest.hexdigest()[:16]}

    def resume(self, kept: Mapping[str, Tensor], prompt: Prompt) -> TextDraft:
        """See Drafter: the rows of the text up to prompt.first, then as begin()."""
        is_text, first, prefill = rows_of_text(self.drafter, prompt.is_text), prompt.first, prompt.prefill
        rows = int(is_text[:, : first + 1].sum())
        news = is_text[:, first:].clone()
        news[:, 0] = False
        positions = prefill.text_position[:, first:]
        pending = text_rows(
            prompt.tokens[:, first:], news, prefill.hidden, positions, prompt.root, places=prefill.at - first
        )
        b, most = pending.tokens.shape
        cache = DraftCache.empty(self.drafter, b, rows + most + prompt.max_new_tokens)
        cache.keys[:, :rows], cache.values[:, :rows] = kept["keys"][:, :rows], kept["values"][:, :rows]
        cache.lengths.fill_(rows)
        return TextDraft(cache, pending)

    def draft(self, state: DecodeState[TextDraft], shape: TreeConfig) -> DraftTree:
        draft = state.draft
        if shape.nodes == 1 and draft.pending.tokens.shape[1] == 1 and not state.captured:
            draft.waiting.append(draft.pending.alone())
            return root_alone(state)
        out, position = catch_up(self.drafter, draft.all_pending(), draft.cache, state.error)
        if shape.nodes == 1:
            return root_alone(state)
        noise = self.noise(state)
        return grow(self.drafter, state.root, out, position, draft.cache, shape, state.error, noise)

    def noise(self, state: DecodeState[TextDraft]) -> Noise | None:
        """Of the draws that the target will make on the round's tree."""
        return noise_for(self.drafter, state.sampler, state.length)

    def accept(self, draft: TextDraft, accepted: Pending) -> None:
        draft.pending = accepted

    def select(self, draft: TextDraft, order: Tensor) -> TextDraft:
        waiting = [one.select(order) for one in draft.waiting]
        return TextDraft(draft.cache.select(order), draft.pending.select(order), waiting)


class NoDrafter(Drafter[None]):
    """Plain decoding through the same loop, operators and cache: every tree is its root."""

    takes_batches = resumes = text_states = True

    def in_loop(self, target: Target, tree: TreeConfig | None) -> tuple[Drafter[Any], TreeConfig | None]:
        if tree is not None:
            raise ValueError("tree needs a drafter: plain decoding drafts nothing")
        return self, None

    def identity(self) -> Hashable | None:
        """See Drafter."""
        return "none"

    def begin(self, prompt: Prompt) -> None:
        return None

    def keep(self, draft: None, error: Tensor) -> dict[str, Tensor]:
        return {}

    def keeper(self) -> Hashable:
        return "nobody"

    def resume(self, kept: Mapping[str, Tensor], prompt: Prompt) -> None:
        return None

    def draft(self, state: DecodeState[None], shape: TreeConfig) -> DraftTree:
        return root_alone(state)

    def select(self, draft: None, order: Tensor) -> None:
        return None
