"""The decode loop: draft a tree, verify it in one pass, accept the longest path, commit it.

The state's invariant at the start of a round (contract of every drafter): the target's cache covers all emitted tokens
but the last; the last one is the root of the next tree.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import sparrow_ext
from sparrow.decoding.stats import Clock
from sparrow.drafters.protocol import DecodeState, Drafter, Pending, Prompt
from sparrow.sampling import NO_DRAW, UNDRAWABLE, Sampler, SamplingRules
from sparrow.targets.adapter import Prefill, Target
from sparrow.tree import TreeConfig


@torch.no_grad()
def start(
    target: Target,
    drafter: Drafter,
    tokens: Tensor,
    model_kwargs: dict,
    rules: SamplingRules,
    max_new_tokens: int,
    nodes: int,
) -> DecodeState:
    """Runs the prompt and draws the first token.

    Args:
        target, drafter: who verifies, who drafts.
        tokens: int64 [B, P], the prompt.
        model_kwargs: what transformers' generate() prepared; our cache is put into it. A token that its attention_mask
            hides is left out of the state, as no other token sees it (one sequence only).
        rules: how tokens are drawn.
        max_new_tokens, nodes: room in the caches, in tokens and for a tree.
    """
    cache = target.new_cache(tokens.shape[1] + max_new_tokens + nodes)
    model_kwargs[target.cache_argument] = cache
    prefill = target.prefill(tokens, model_kwargs, drafter.hidden_layer, drafter.visual_layer)
    sampler = Sampler(rules, tokens, target.vocab_size)
    root = sampler.first(prefill.logits, tokens)
    length = torch.full((tokens.shape[0],), tokens.shape[1] + 1, dtype=torch.int64, device=tokens.device)
    mask = model_kwargs.get("attention_mask")
    if isinstance(mask, Tensor):
        seen = mask[0].nonzero()[:, 0]
        cache.set_aside((mask[0] == 0).nonzero()[:, 0])
        tokens, prefill = tokens[:, seen], _at(prefill, seen)
    error = sparrow_ext.error_word(root.device)
    prompt = Prompt(tokens, target.is_text(tokens), prefill, root, cache, max_new_tokens, error)
    return DecodeState(cache, root, length, prefill.next_position, sampler, drafter.begin(prompt), error)


def _at(prefill: Prefill, places: Tensor) -> Prefill:
    """The prefill of these places of the prompt, int64 [R]."""
    visual = None if prefill.visual is None else prefill.visual[:, places]
    position = prefill.text_position[:, places]
    return replace(prefill, hidden=prefill.hidden[:, places], text_position=position, visual=visual)


@torch.no_grad()
def decode_round(
    target: Target, drafter: Drafter, state: DecodeState, shape: TreeConfig, clock: Clock, stops: Callable[[int], bool]
) -> tuple[list[int], list[int]]:
    """One round. Returns the first sequence's tokens and each sequence's path length (accepted tokens + 1).

    The only host synchronisation is `fetch` (a processor that is not an operator adds one per visited node, and asks
    `stops` about each token it draws: behind one that ends generation nothing is drawn).
    """
    with clock.stage("draft"):
        tree = drafter.draft(state, shape)
    with clock.stage("verify"):
        positions = state.position + tree.depth
        logits, hidden = target.verify(tree.tokens, tree.anc, positions, state.cache, drafter.hidden_layer)
    with clock.stage("sample"):
        chosen = state.sampler.choose(logits, tree, state.length, stops)
        num_path, path, tokens = sparrow_ext.tree_accept(
            tree.tokens, tree.parent, chosen, tree.num_nodes, max_path=shape.max_path, error=state.error
        )
        state.sampler.check(logits, path, state.error)
    with clock.stage("commit"):
        lengths = torch.empty_like(state.cache.lengths)
        sparrow_ext.kv_commit(state.cache.by_row, path, num_path, state.cache.lengths, lengths, error=state.error)
        counts, emitted = fetch(num_path, tokens, state.error)
        state.cache.commit(max(counts), lengths)
        drafter.accept(state.draft, advance(state, num_path, path, tokens, hidden, max(counts)))
    return emitted, counts


def fetch(num_path: Tensor, tokens: Tensor, error: Tensor) -> tuple[list[int], list[int]]:
    """The round's host synchronisation: path lengths [B], and the first sequence's emitted tokens.

    Raises RuntimeError where the sampler or an operator of the round set a bit of `error` (int32 [1]).
    """
    words = error.long().expand(len(tokens), 1)
    rows = torch.cat([words, num_path[:, None].long(), tokens], dim=1).tolist()
    if rows[0][0] & UNDRAWABLE:
        raise RuntimeError(NO_DRAW)
    sparrow_ext.raise_for_error(rows[0][0])
    return [row[1] for row in rows], rows[0][2 : 2 + rows[0][1]]


def advance(state: DecodeState, num_path: Tensor, path: Tensor, tokens: Tensor, hidden: Tensor, most: int) -> Pending:
    """Moves the state behind the accepted path: the last emitted token is the new root. Returns what was accepted."""
    b, n = hidden.shape[:2]
    batch = torch.arange(b, device=path.device)[:, None]
    steps = torch.arange(most, device=path.device)
    position = state.position[-1] if state.position.dim() == 3 else state.position
    accepted = Pending(
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
    return accepted
