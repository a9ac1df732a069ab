"""The decode loop: draft a tree, verify it in one pass, accept the longest path, commit it.

The state's invariant at the start of a round (contract of every drafter): the target's cache covers all emitted tokens
but the last; the last one is the root of the next tree.
"""

from dataclasses import replace

import torch
from torch import Tensor

import sparrow_ext
from sparrow.decoding.reuse import Reuse
from sparrow.decoding.stats import Clock
from sparrow.drafters.protocol import DecodeState, Drafter, Pending, Prompt
from sparrow.sampling import NO_DRAW, UNDRAWABLE, Sampler, SamplingRules, Stops
from sparrow.targets.adapter import Target
from sparrow.targets.cache import TargetCache
from sparrow.targets.prefilling import WHOLE, Portions, Prefill
from sparrow.tree import TreeConfig


@torch.no_grad()
def start(
    target: Target,
    drafter: Drafter,
    tokens: Tensor,
    model_kwargs: dict,
    rules: SamplingRules,
    max_new_tokens: int,
    shape: TreeConfig,
    cache: TargetCache,
    reuse: Reuse | None = None,
    portions: Portions = WHOLE,
) -> DecodeState:
    """Runs the prompt and draws the first token.

    Args:
        target, drafter: who verifies, who drafts.
        tokens: int64 [B, P], the prompts, shorter ones padded on the left.
        model_kwargs: what transformers' generate() prepared; our cache is put into it. A token that its attention_mask
            hides is left out of the state, as no other token sees it. (Of a single sequence it still counts in the
            numbering of the noise, and for processors, as in transformers.)
        rules: how tokens are drawn.
        max_new_tokens: room that the drafter needs.
        shape: of the trees to come; the largest where they differ.
        cache: an empty one, with room for prompt, new tokens and a tree.
        reuse: what is taken over of an earlier run, if anything: then only the rest of the prompt is run.
        portions: of the prompt's pass, see there.
    """
    model_kwargs[target.cache_argument] = cache
    first = 0 if reuse is None else reuse.fill(cache)
    prefill = target.prefill(tokens, model_kwargs, drafter.hidden_layer, drafter.visual_layer, first, portions)
    if reuse is not None:
        prefill = reuse.joined(prefill)
    p, hidden, padding = tokens.shape[1], hidden_of(tokens, model_kwargs), padding_of(tokens, model_kwargs)
    sampler = Sampler(rules, tokens, target.vocab_size, padding)
    root = sampler.first(prefill.logits, tokens, p - padding)
    error, lengths = sparrow_ext.error_word(root.device), p - hidden.sum(1)
    if bool(hidden.any()):  # then nothing was taken over
        cache.set_aside(hidden)
        seen = hidden.int().argsort(dim=1, stable=True)[:, : int(lengths.max())]
        tokens, prefill = tokens.gather(1, seen), _at(prefill.everywhere(p), seen)
    is_text = target.is_text(tokens) & (torch.arange(tokens.shape[1], device=root.device) < lengths[:, None])
    at = 0 if reuse is None else int(prefill.at[0])
    prompt = Prompt(tokens, is_text, prefill, root, cache, max_new_tokens, error, lengths, at)
    draft = drafter.begin(prompt) if reuse is None else reuse.draft(prompt)
    position, states = prefill.next_position, prefill.hidden
    return DecodeState.after_prompt(cache, root, p - padding + 1, position, sampler, draft, error, shape, states)


def hidden_of(tokens: Tensor, model_kwargs: dict) -> Tensor:
    """bool [B, P], the tokens that the attention_mask hides."""
    mask = model_kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        return torch.zeros_like(tokens, dtype=torch.bool)
    return (mask == 0).to(tokens.device)


def padding_of(tokens: Tensor, model_kwargs: dict) -> Tensor:
    """int64 [B], hidden tokens at the left of each prompt of a batch; 0 for a single one, whose tokens all count."""
    hidden = hidden_of(tokens, model_kwargs)
    return hidden.cumprod(1).sum(1) if len(tokens) > 1 else torch.zeros_like(tokens[:, 0])


def _at(prefill: Prefill, places: Tensor) -> Prefill:
    """The prefill of these places of each prompt, int64 [B, R]."""

    def at(states: Tensor) -> Tensor:
        return states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))

    visual = None if prefill.visual is None else at(prefill.visual)
    position = prefill.text_position.gather(1, places)
    return replace(prefill, hidden=at(prefill.hidden), text_position=position, visual=visual)


@torch.no_grad()
def step(target: Target, drafter: Drafter, state: DecodeState, shape: TreeConfig, clock: Clock, stops: Stops) -> None:
    """One round. It reads nothing on the host and writes into the state's own tensors; the last one is state.report.

    (Two exceptions: a drafter without an `identity`, and a processor that is not an operator, which reads once per
    visited node and asks `stops` about each token it draws: behind one that ends generation nothing is drawn.)
    """
    with clock.stage("draft"):
        tree = drafter.draft(state, shape)
        if tree.tokens.shape[1] != shape.nodes:
            raise ValueError(f"a tree of {shape} must have {shape.nodes} nodes, got {tree.tokens.shape[1]}")
    with clock.stage("verify"):
        positions = state.position + tree.depth
        logits, hidden = target.verify(tree.tokens, tree.anc, positions, state.cache, drafter.hidden_layer, state.error)
    with clock.stage("sample"):
        chosen = state.sampler.choose(logits, tree, state.length, stops)
        num_path, path, tokens = sparrow_ext.tree_accept(
            tree.tokens, tree.parent, chosen, tree.num_nodes, max_path=shape.max_path, error=state.error
        )
        state.sampler.check(logits, path, state.error)
    with clock.stage("commit"):
        state.cache.commit(path, num_path, state.error)
        drafter.accept(state.draft, advance(state, num_path, path, tokens, hidden))
        if state.scores is not None and tree.scores is not None:
            if state.captured or tree.scores.is_cuda:
                state.scores[:, : tree.scores.shape[1]].copy_(tree.scores, non_blocking=True)
            else:
                state.scores = tree.scores
        words = state.error.long().expand(len(tokens), 1)
        report = torch.cat([words, num_path[:, None].long(), tokens], dim=1)
        state.report[:, : report.shape[1]].copy_(report, non_blocking=True)


def advance(state: DecodeState, num_path: Tensor, path: Tensor, tokens: Tensor, hidden: Tensor) -> Pending:
    """Moves the state behind the accepted path: the last emitted token is the new root. Returns what was accepted."""
    (b, n), most = hidden.shape[:2], tokens.shape[1]
    batch = torch.arange(b, device=path.device)[:, None]
    position = state.position[-1] if state.position.dim() == 3 else state.position
    accepted = state.accepted.head(most, b * n)
    accepted.tokens.copy_(tokens.clamp(min=0))
    accepted.row_index.copy_(path.clamp(min=0) + batch * n)
    accepted.hidden.copy_(hidden.flatten(0, 1))
    accepted.positions.copy_(position + 1 + torch.arange(most, device=path.device))
    accepted.num_rows.copy_(num_path)
    state.sampler.see(tokens)
    state.root.copy_(tokens.gather(1, (num_path - 1).long()[:, None])[:, 0])
    state.length.add_(num_path)
    state.position.add_(num_path[:, None])
    return accepted


def read(state: DecodeState) -> list[list[int]]:
    """The round's host synchronisation: each sequence's emitted tokens, as many as its path is long (accepted + 1).

    Raises RuntimeError where the sampler or an operator of the round set a bit of the error word.
    """
    if state.root.is_cuda:
        torch.cuda.current_stream(state.root.device).synchronize()
    rows = state.report.tolist()
    if rows[0][0] & UNDRAWABLE:
        raise RuntimeError(NO_DRAW)
    sparrow_ext.raise_for_error(rows[0][0])
    state.cache.count([row[1] for row in rows])
    return [row[2 : 2 + row[1]] for row in rows]


def run_last(target: Target, cache: TargetCache, order: list[int], tokens: Tensor, positions: Tensor) -> None:
    """Runs and commits the last tokens int64 [B', 1] of some sequences, see TargetCache.select; inside `verifying`."""
    cache.select(order)
    none = torch.zeros(len(order), 1, dtype=torch.int32, device=tokens.device)
    anc, _ = sparrow_ext.tree_mask(none - 1)
    target.verify(tokens, anc, positions, cache, None)
    cache.commit(none, none[:, 0] + 1)
    cache.count([1] * len(order))
    cache.bring_back()


def decode_round(
    target: Target, drafter: Drafter, state: DecodeState, shape: TreeConfig, clock: Clock, stops: Stops
) -> list[list[int]]:
    """A step and its one host synchronisation. Returns what `read` does."""
    step(target, drafter, state, shape, clock, stops)
    with clock.stage("commit"):
        return read(state)
