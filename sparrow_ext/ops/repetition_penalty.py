"""repetition_penalty: the penalty of every token a tree node's sequence has seen, in place."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend
from sparrow_ext.ops.tree_mask import unpack_words


@operator
def repetition_penalty(logits: Tensor, tokens: Tensor, anc: Tensor, seen: Tensor, penalty: Tensor) -> None:
    """Divides positive and multiplies negative logits of seen tokens by the penalty, once per token; changes logits.

    A token is seen by node n where it is in the sequence's bitmap or is the token of a node that n sees.

    Args:
        logits: float32 [B, N, V], N <= 128; any row strides, last dimension dense; changed in place.
        tokens: int64 [B, N], contiguous: the nodes' token ids, in [0, V).
        anc: int64 [B, N, W], W = ceil(N / 64), contiguous: ancestor words (tree_mask). Bits at or beyond N are ignored.
        seen: bool [B, V], contiguous: the tokens of the prefix.
        penalty: float32 [B], positive and finite; 1 = off.

    Raises:
        RuntimeError: wrong dtype, shape, stride, device or value; nothing is changed then.

    Source: the rule of transformers' RepetitionPenaltyLogitsProcessor (CTRL, arXiv 1909.05858, section 4.1).

    Example:
        >>> logits = torch.tensor([[[2.0, -2.0, 2.0, 2.0]]])
        >>> seen = torch.tensor([[False, True, False, True]])
        >>> repetition_penalty(logits, torch.tensor([[0]]), torch.tensor([[[1]]]), seen, torch.tensor([2.0]))
        >>> logits  # token 0 is the node's own
        tensor([[[ 1., -4.,  2.,  1.]]])
    """
    require_backend("repetition_penalty", logits)
    torch.ops.sparrow.repetition_penalty(logits, tokens, anc, seen, penalty)


@fake_kernel("repetition_penalty")
def _fake(logits: Tensor, tokens: Tensor, anc: Tensor, seen: Tensor, penalty: Tensor) -> None:
    return None


def reference(logits: Tensor, tokens: Tensor, anc: Tensor, seen: Tensor, penalty: Tensor) -> None:
    """The definition, node by node, in place; any floating dtype."""
    batch, nodes, _ = logits.shape
    visible = unpack_words(anc, nodes)
    for b in range(batch):
        for n in range(nodes):
            ids = set(seen[b].nonzero().flatten().tolist()) | set(tokens[b, visible[b, n]].tolist())
            for v in ids:
                x = logits[b, n, v]
                logits[b, n, v] = x * penalty[b] if x < 0 else x / penalty[b]


def eager(logits: Tensor, tokens: Tensor, anc: Tensor, seen: Tensor, penalty: Tensor) -> None:
    """What a user would write: a dense seen mask per node, then where, in place."""
    nodes, vocab = logits.shape[1:]
    visible = unpack_words(anc, nodes)
    mask = seen.unsqueeze(1).repeat(1, nodes, 1)
    # A spare column takes the nodes that are not visible.
    mask = torch.nn.functional.pad(mask, (0, 1))
    ids = torch.where(visible, tokens.unsqueeze(1), vocab)
    mask = mask.scatter(2, ids, True)[..., :vocab]
    p = penalty[:, None, None]
    logits.copy_(torch.where(mask, torch.where(logits < 0, logits * p, logits / p), logits))
