"""Drafters that see the video, or number their rows as if they did: MSD, MSD + VATA, ViSpec. See docs/rivals.md.

Only the prompt differs from Sparrow's: here it becomes a cache of text and visual rows. Catching up with accepted
tokens and growing the tree are Sparrow's own code (text.py).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import sparrow_ext
from sparrow.drafters.compressor import visual_blocks
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.protocol import Pending, Prompt
from sparrow.drafters.text import DraftCache, TextDraft, TextDrafter, rows_of_text
from sparrow.targets.prefilling import Prefill


class VisualDrafter(TextDrafter):
    """A SparrowDrafter with positions=sequence in the loop, whatever it sees of the video."""

    text_states = False

    def __init__(self, drafter: SparrowDrafter):
        super().__init__(drafter)
        self.visual_layer = drafter.config.seen_layer
        self.resumes = drafter.config.visual == "none"

    def resume(self, kept: Mapping[str, Tensor], prompt: Prompt) -> TextDraft:
        """See Drafter; of text rows only. One sequence."""
        drafter, first, rows = self.drafter, prompt.first, rows_of_text(self.drafter, prompt.is_text)
        p, total, have = rows.shape[1], int(rows.sum()), int(rows[:, : first + 1].sum())
        cache = DraftCache.empty(drafter, 1, total + prompt.max_new_tokens)
        cache.keys[:, :have], cache.values[:, :have] = kept["keys"][:, :have], kept["values"][:, :have]
        which, place = (rows & (torch.arange(p, device=rows.device) > first)).nonzero(as_tuple=True)
        states = drafter.reuse(state_before(prompt.prefill.hidden, which, place - first))
        numbers = torch.arange(len(place), dtype=torch.int32, device=place.device)
        if len(place):
            x = drafter.rows_of(prompt.tokens[which, place], numbers, states, prompt.error)
            append(drafter, x, place, have + numbers, cache)
        cache.lengths.fill_(total)
        cache.skipped = p - cache.lengths
        return TextDraft(cache, _root_alone(prompt))

    def begin(self, prompt: Prompt) -> TextDraft:
        cache = prompt_cache(
            self.drafter, prompt.tokens, prompt.is_text, prompt.prefill, prompt.max_new_tokens, prompt.error,
            prompt.count,
        )  # fmt: skip
        return TextDraft(cache, _root_alone(prompt))


def _root_alone(prompt: Prompt) -> Pending:
    """What is pending where the prompt's rows are written already."""
    (b, p), end = prompt.prefill.hidden.shape[:2], prompt.count[:, None] - 1
    batch = torch.arange(b, device=prompt.root.device)[:, None]
    return Pending(
        tokens=prompt.root[:, None],
        row_index=(batch * p + end - prompt.first).int(),
        hidden=prompt.prefill.hidden.flatten(0, 1),
        positions=prompt.prefill.text_position.gather(1, end) + 1,
        num_rows=torch.ones(b, dtype=torch.int32, device=prompt.root.device),
    )


@torch.no_grad()
def prompt_cache(
    drafter: SparrowDrafter,
    tokens: Tensor,
    is_text: Tensor,
    prefill: Prefill,
    max_new_tokens: int,
    error: Tensor | None = None,
    lengths: Tensor | None = None,
) -> DraftCache:
    """The prompt's rows in the drafter's cache, with room for `max_new_tokens` more and a tree.

    Rows by drafter.config.visual: the text (none); all places (rows, states); the text and the last place of every
    block of visual tokens (compressed). A text row is made of e_t and h_{t-1}; a visual row likewise (states), or it is
    its state, or the block's one token. Of a single layer's prompt only keys and values are ever used: nothing else is
    computed.

    Args:
        tokens: int64 [B, P]; is_text: bool [B, P].
        prefill: with `visual` unless visual=none.
        error: the operators' error word.
        lengths: int64 [B], tokens of each sequence; None = P.
    """
    b, p = tokens.shape
    lengths = torch.full_like(tokens[:, 0], p) if lengths is None else lengths
    places = ~is_text & (torch.arange(p, device=tokens.device) < lengths[:, None])
    ends = places & F.pad(~places[:, 1:], (0, 1), value=True)
    rows = rows_of_text(drafter, is_text)
    seen = {"none": rows, "compressed": rows | ends}.get(drafter.config.visual, rows | places)
    visual, summaries = visual_rows(drafter, places, ends, prefill)
    which, place = seen.nonzero(as_tuple=True)  # prefill's own host synchronisation
    text = is_text[which, place]
    x = visual.new_empty(len(place), visual.shape[1])
    x[~text] = visual
    x[text] = text_inputs(drafter, tokens, prefill.hidden, summaries, which[text], place[text], error)
    count = seen.sum(1, dtype=torch.int32)
    cache = DraftCache.empty(drafter, b, int(count.max()) + max_new_tokens)
    slot = which * cache.keys.shape[1] + (seen.cumsum(1) - 1)[which, place]
    append(drafter, x, place, slot, cache)
    cache.lengths, cache.skipped = count, lengths.int() - count
    cache.summary = None if summaries is None else summaries[:, -1:]
    return cache


def visual_rows(
    drafter: SparrowDrafter, places: Tensor, ends: Tensor, prefill: Prefill
) -> tuple[Tensor, Tensor | None]:
    """The drafter's visual rows [R, W], sequence by sequence, and the global vector at every place [B, P, E], if any.

    Args:
        places, ends: bool [B, P]: visual tokens, and the last ones of their blocks.
        prefill: its `visual`, states of visual_layer, is not looked at where visual=none.
    """
    states = prefill.visual
    if drafter.config.visual == "none":
        width = drafter.config.hidden_size * (2 if drafter.config.layer == "eagle3" else 1)
        return drafter.weight.new_empty(0, width), None
    if states is None:
        raise ValueError(f"a drafter with visual={drafter.config.visual} needs Prefill.visual, got None")
    if drafter.config.visual == "rows":
        return states[places], None
    if drafter.config.visual == "states":
        which, place = places.nonzero(as_tuple=True)
        return drafter.rows(states[which, place], drafter.reuse(state_before(prefill.hidden, which, place))), None
    ended = ends.cumsum(1)
    most = int(ended.max())
    tokens, summaries = drafter.compressor(states, visual_blocks(~places), most)
    exists = torch.arange(most, device=ended.device) < ended[:, -1:]
    return tokens[exists], summaries.gather(1, ended[..., None].expand_as(states))


def text_inputs(
    drafter: SparrowDrafter,
    tokens: Tensor,
    hidden: Tensor,
    summaries: Tensor | None,
    which: Tensor,
    place: Tensor,
    error: Tensor | None = None,
) -> Tensor:
    """Text rows [R, W] of e_t and h_{t-1}: row i is the token at `place[i]` of sequence `which[i]`, int64 [R]."""
    states = drafter.reuse(state_before(hidden, which, place), None if summaries is None else summaries[which, place])
    rows = torch.arange(len(place), dtype=torch.int32, device=place.device)
    return drafter.rows_of(tokens[which, place], rows, states, error)


def state_before(hidden: Tensor, which: Tensor, place: Tensor) -> Tensor:
    """h_{t-1} of places t, [R, E * layers], zeros at t = 0; hidden [B, P, E * layers], which and place int64 [R]."""
    return hidden[which, (place - 1).clamp(min=0)] * (place > 0)[:, None]


def append(drafter: SparrowDrafter, x: Tensor, positions: Tensor, slots: Tensor, cache: DraftCache) -> None:
    """Writes keys and values of rows x [R, W] at `positions` to `slots`, int64 [R], of the cache's rows end to end."""
    config, layer = drafter.config, drafter.decoder_layer
    qkv = layer.self_attn.qkv_proj(layer.read(x)).unflatten(-1, (-1, config.head_dim))[None]
    q, k, v = qkv.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=2)
    keys, values = (t.flatten(0, 1)[None] for t in (cache.keys, cache.values))
    sparrow_ext.rope_append(q, k, v, drafter.cos_sin(positions)[None], slots.int()[None], keys, values)
