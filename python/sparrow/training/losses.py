"""The losses, and their sum over many rows in bounded memory: logits exist for some rows at a time only."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparrow.drafters.network import SparrowDrafter
from sparrow.training.recipe import Recipe

METRICS = ("loss", "agreement", "acceptance")
CHUNK = 2**24  # logits at a time: 64 MiB in float32, and some six such tensors


def cross_entropy(p: Tensor, log_q: Tensor) -> Tensor:
    """-sum_x p(x) log q(x), [R]; p and log_q float32 [R, Vd].

    p is the target's distribution, or its part over a trimmed draft vocabulary, not renormalised: a row then weighs by
    the probability the draft vocabulary covers.
    """
    return -(p * log_q).sum(-1)


def refusal(p: Tensor, log_q: Tensor) -> Tensor:
    """1 - sum_x min(p(x), q(x)), [R]: the chance that speculative sampling refuses a draw from q (Leviathan et al.,
    arXiv 2211.17192, theorem 3.5). Equals the total variation where p sums to 1.
    """
    return 1 - p.minimum(log_q.exp()).sum(-1)


def feature(out: Tensor, state: Tensor) -> Tensor:
    """SmoothL1 (beta 1), averaged over E, [R]; out and state [R, E]."""
    return F.smooth_l1_loss(out.float(), state.float(), reduction="none").mean(-1)


def target_distribution(drafter: SparrowDrafter, final: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The target's likeliest token int64 [R], and its distribution over the draft vocabulary float32 [R, Vd].

    final: [R, E], states after its final norm.
    """
    logits = drafter.tables.head(final.to(drafter.embedding.dtype)).float()
    best = logits.argmax(-1)
    p = logits.div_(temperature).softmax(-1)
    return best, p[:, drafter.draft_vocab_ids] if drafter.config.draft_vocab else p


def distribution_losses(
    drafter: SparrowDrafter, recipe: Recipe, inputs: Tensor, final: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses that compare distributions, over all passes.

    Args:
        inputs: [K, R, E], the drafter's outputs as the head reads them, of each pass.
        final: [R, E], the target's states after its final norm.
        weights: float32 [K, R], of each row's loss; rows of weight 0 count nowhere.

    Returns:
        the weighted sum (scalar), and sums over the rows that count: float32 [K, 3], METRICS, detached.
    """
    own = [drafter.lm_head.weight] if drafter.config.own_head else []
    return _Chunked.apply(drafter, recipe, final, weights, inputs, *own)


class _Chunked(torch.autograd.Function):
    """Gradients are taken in the forward pass, chunk by chunk: nothing of a chunk outlives it."""

    @staticmethod
    def forward(
        ctx: Any, drafter: SparrowDrafter, recipe: Recipe, final: Tensor, weights: Tensor, inputs: Tensor, *own: Tensor
    ) -> tuple[Tensor, Tensor]:
        passes, rows = inputs.shape[:2]
        wanted = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(x, dtype=torch.float32) for x in (inputs, *own)] if wanted else []
        total, metrics = inputs.new_zeros((), dtype=torch.float32), inputs.new_zeros(passes, 3, dtype=torch.float32)
        step = max(1, CHUNK // drafter.num_draft_tokens)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            best, p = target_distribution(drafter, final[part], recipe.temperature)
            for k in range(passes):
                x = inputs[k, part].detach().requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    loss, found = _chunk(drafter, recipe, x, best, p, weights[k, part])
                total += loss.detach()
                metrics[k] += found
                if wanted:
                    _add(gradients, k, part, torch.autograd.grad(loss, [x, *own]))
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in (inputs, *own)]
        ctx.mark_non_differentiable(metrics)
        return total, metrics

    @staticmethod
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        made = (g.mul(outer).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return (None, None, None, None, *made)


def _add(gradients: Sequence[Tensor], k: int, part: slice, found: Sequence[Tensor]) -> None:
    gradients[0][k, part] = found[0]
    for whole, more in zip(gradients[1:], found[1:], strict=True):
        whole.add_(more)


def _chunk(
    drafter: SparrowDrafter, recipe: Recipe, x: Tensor, best: Tensor, p: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and metrics of some rows of one pass; no graph for a loss of weight 0."""
    log_q = drafter.logits_of(x).float().log_softmax(-1)
    loss = recipe.cross_entropy * cross_entropy(p, log_q) if recipe.cross_entropy else log_q.new_zeros(len(x))
    if recipe.acceptance:
        refused = refusal(p, log_q)
        loss = loss + recipe.acceptance * refused
    else:
        refused = refusal(p, log_q.detach())
    counts, ids = (weights > 0).float(), log_q.detach().argmax(-1)
    agreed = (drafter.draft_vocab_ids[ids] if drafter.config.draft_vocab else ids) == best
    sums = [(value.detach() * counts).sum() for value in (loss, agreed.float(), 1 - refused)]
    return (loss * weights).sum(), torch.stack(sums)
