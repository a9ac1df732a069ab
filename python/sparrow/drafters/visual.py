"""Drafters that see the video, or number their rows as if they did: MSD, MSD + VATA, ViSpec. See docs/rivals.md.

Only the prompt differs from Sparrow's: here it becomes a cache of text and visual rows. Catching up with accepted
tokens and growing the tree are Sparrow's own code (text.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import sparrow_ext
from sparrow.drafters.compressor import visual_blocks
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.protocol import Pending, Prompt
from sparrow.drafters.text import DraftCache, TextDraft, TextDrafter
from sparrow.targets.adapter import Prefill


class VisualDrafter(TextDrafter):
    """A SparrowDrafter with positions=sequence in the loop, whatever it sees of the video."""

    def __init__(self, drafter: SparrowDrafter):
        super().__init__(drafter)
        self.visual_layer = drafter.config.seen_layer

    def begin(self, prompt: Prompt) -> TextDraft:
        b, p = prompt.tokens.shape
        last = torch.arange(b, dtype=torch.int32, device=prompt.root.device)[:, None] * p + p - 1
        pending = Pending(  # the root alone
            tokens=prompt.root[:, None],
            row_index=last,
            hidden=prompt.prefill.hidden.flatten(0, 1),
            positions=prompt.prefill.text_position[:, -1:] + 1,
            num_rows=torch.ones_like(last[:, 0]),
        )
        cache = prompt_cache(
            self.drafter, prompt.tokens, prompt.is_text, prompt.prefill, prompt.max_new_tokens, prompt.error
        )
        return TextDraft(cache, pending)


@torch.no_grad()
def prompt_cache(
    drafter: SparrowDrafter,
    tokens: Tensor,
    is_text: Tensor,
    prefill: Prefill,
    max_new_tokens: int,
    error: Tensor | None = None,
) -> DraftCache:
    """The prompt's rows in the drafter's cache, with room for `max_new_tokens` more and a tree.

    Rows by drafter.config.visual: the text (none); all places (rows); the text and the last place of every block
    of visual tokens (compressed). A text row is FC(e_t ++ h_{t-1}), a visual row its state or the block's one
    token, without FC. Of a single layer's prompt only keys and values are ever used: nothing else is computed.

    Args:
        tokens: int64 [B, P]; is_text: bool [B, P].
        prefill: with `visual` unless visual=none.
        error: the operators' error word.
    """
    b, p = tokens.shape
    ends = ~is_text & F.pad(is_text[:, 1:], (0, 1), value=True)
    seen = {"none": is_text, "rows": torch.ones_like(is_text), "compressed": is_text | ends}[drafter.config.visual]
    visual, summaries = visual_rows(drafter, is_text, ends, prefill.visual)
    which, place = seen.nonzero(as_tuple=True)  # prefill's own host synchronisation
    text = is_text[which, place]
    x = drafter.fc.weight.new_empty(len(place), drafter.config.hidden_size)
    x[~text] = visual
    x[text] = text_inputs(drafter, tokens, prefill.hidden, summaries, which[text], place[text], error)
    count = seen.sum(1, dtype=torch.int32)
    cache = DraftCache.empty(drafter, b, int(count.max()) + max_new_tokens)
    slot = which * cache.keys.shape[1] + (seen.cumsum(1) - 1)[which, place]
    append(drafter, x, place, slot, cache)
    cache.lengths, cache.skipped = count, p - count
    cache.summary = None if summaries is None else summaries[:, -1:]
    return cache


def visual_rows(
    drafter: SparrowDrafter, is_text: Tensor, ends: Tensor, states: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The drafter's visual rows [R, E], sequence by sequence, and the global vector at every place [B, P, E], if any.

    Args:
        is_text, ends: bool [B, P]; ends: the last places of visual blocks.
        states: [B, P, E], of visual_layer; not looked at where visual=none.
    """
    if drafter.config.visual == "none":
        return drafter.fc.weight.new_empty(0, drafter.config.hidden_size), None
    if states is None:
        raise ValueError(f"a drafter with visual={drafter.config.visual} needs Prefill.visual, got None")
    if drafter.config.visual == "rows":
        return states[~is_text], None
    ended = ends.cumsum(1)
    most = int(ended.max())
    tokens, summaries = drafter.compressor(states, visual_blocks(is_text), most)
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
    """FC(e_t ++ h_{t-1}) of text rows, [R, E]: row i is the token at `place[i]` of sequence `which[i]`, int64 [R]."""
    before = hidden[which, (place - 1).clamp(min=0)] * (place > 0)[:, None]
    states = drafter.reuse(before, None if summaries is None else summaries[which, place])
    rows = torch.arange(len(place), dtype=torch.int32, device=place.device)
    return sparrow_ext.hsr_project(
        tokens[which, place], rows, drafter.embedding, states, drafter.fc.weight, drafter.fc.bias, error=error
    )


def append(drafter: SparrowDrafter, x: Tensor, positions: Tensor, slots: Tensor, cache: DraftCache) -> None:
    """Writes keys and values of rows x [R, E] at `positions` to `slots`, int64 [R], of the cache's rows end to end."""
    config, layer = drafter.config, drafter.decoder_layer
    qkv = layer.self_attn.qkv_proj(layer.input_layernorm(x)).unflatten(-1, (-1, config.head_dim))[None]
    q, k, v = qkv.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=2)
    keys, values = (t.flatten(0, 1)[None] for t in (cache.keys, cache.values))
    sparrow_ext.rope_append(q, k, v, drafter.cos_sin(positions)[None], slots.int()[None], keys, values)
