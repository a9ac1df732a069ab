"""The decode loop: draft a tree, verify it in one pass, accept the longest path, commit it.

The state's invariant at the start of a round (contract of every drafter): the target's cache covers all emitted tokens
but the last; the last one is the root of the next tree.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import sparrow_ext
from sparrow.decoding.reuse import Reuse
from sparrow.decoding.stats import Clock
from sparrow.drafters.protocol import DecodeState, Drafter, Pending, Prompt
from sparrow.sampling import NO_DRAW, UNDRAWABLE, Sampler, SamplingRules
from sparrow.targets.adapter import Prefill, Target
from sparrow.targets.cache import TargetCache
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
) -> DecodeState:
    """Runs the prompt and draws the first token.

    Args:
        target, drafter: who verifies, who drafts.
        tokens: int64 [B, P], the prompt.
        model_kwargs: what transformers' generate() prepared; our cache is put into it. A token that its attention_mask
            hides is left out of the state, as no other token sees it (one sequence only).
        rules: how tokens are drawn.
        max_new_tokens: room that the drafter needs.
        shape: of the trees to come; the largest where they differ.
        cache: an empty one, with room for prompt, new tokens and a tree.
        reuse: what is taken over of an earlier run, if anything: then only the rest of the prompt is run.
    """
    model_kwargs[target.cache_argument] = cache
    first = 0 if reuse is None else reuse.fill(cache)
    prefill = target.prefill(tokens, model_kwargs, drafter.hidden_layer, drafter.visual_layer, first)
    if reuse is not None:
        prefill = reuse.joined(prefill)
    sampler = Sampler(rules, tokens, target.vocab_size)
    root = sampler.first(prefill.logits, tokens)
    length = torch.full((tokens.shape[0],), tokens.shape[1] + 1, dtype=torch.int64, device=tokens.device)
    mask = model_kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and not first:
        seen = mask[0].nonzero()[:, 0]
        cache.set_aside((mask[0] == 0).nonzero()[:, 0])
        tokens, prefill = tokens[:, seen], _at(prefill, seen)
    error = sparrow_ext.error_word(root.device)
    at = tokens.shape[1] - prefill.hidden.shape[1]
    prompt = Prompt(tokens, target.is_text(tokens), prefill, root, cache, max_new_tokens, error, at)
    draft = drafter.begin(prompt) if reuse is None else reuse.draft(prompt)
    position, states = prefill.next_position, prefill.hidden
    return DecodeState.after_prompt(cache, root, length, position, sampler, draft, error, shape, states)


def _at(prefill: Prefill, places: Tensor) -> Prefill:
    """The prefill of these places of the prompt, int64 [R]."""
    visual = None if prefill.visual is None else prefill.visual[:, places]
    position = prefill.text_position[:, places]
    return replace(prefill, hidden=prefill.hidden[:, places], text_position=position, visual=visual)


@torch.no_grad()
def step(
    target: Target, drafter: Drafter, state: DecodeState, shape: TreeConfig, clock: Clock, stops: Callable[[int], bool]
) -> None:
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
            state.scores[:, : tree.scores.shape[1]].copy_(tree.scores, non_blocking=True)
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


def read(state: DecodeState) -> tuple[list[int], list[int]]:
    """The round's host synchronisation: the first sequence's emitted tokens, each path's length (accepted tokens + 1).

    Raises RuntimeError where the sampler or an operator of the round set a bit of the error word.
    """
    if state.root.is_cuda:
        torch.cuda.current_stream(state.root.device).synchronize()
    rows = state.report.tolist()
    if rows[0][0] & UNDRAWABLE:
        raise RuntimeError(NO_DRAW)
    sparrow_ext.raise_for_error(rows[0][0])
    counts = [row[1] for row in rows]
    state.cache.count(max(counts))
    return rows[0][2 : 2 + counts[0]], counts


def decode_round(
    target: Target, drafter: Drafter, state: DecodeState, shape: TreeConfig, clock: Clock, stops: Callable[[int], bool]
) -> tuple[list[int], list[int]]:
    """A step and its one host synchronisation. Returns what `read` does."""
    step(target, drafter, state, shape, clock, stops)
    with clock.stage("commit"):
        return read(state)
