"""Losses of a drafter, one number per row."""

import torch.nn.functional as F
from torch import Tensor


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
