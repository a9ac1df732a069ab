"""tree_rerank: the draft tree to verify, from the history of all levels."""

import math

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend
from sparrow_ext.ops import tree_mask

Tree = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@operator
def tree_rerank(
    root_token: Tensor,
    hist_score: Tensor,
    hist_id: Tensor,
    hist_parent: Tensor,
    num_nodes: int,
    error: Tensor | None = None,
) -> Tree:
    """Keeps the best candidates of all levels as one tree below the root.

    An entry's effective score is the lower of its own and its parent's effective score (tree_expand's are so already),
    so a kept entry's parent is kept, too. Kept are the num_nodes - 1 best by (effective score descending, index
    ascending), never one of -inf or NaN; they become nodes 1, 2, ... in history order, so parents precede children.

    Args:
        root_token: int64 [B], node 0.
        hist_score: float32 [B, C], contiguous, as the next two.
        hist_id: int64 [B, C].
        hist_parent: int32 [B, C]; hist_parent[b, i] lies in [-1, i); -1 = the root.
        num_nodes: N, nodes of the tree, root included; 1 to 128.
        error: int32 [1], the error word (see `sparrow_ext.error_word`), or None. Mutated by the CUDA kernel only.

    Returns:
        tokens: int64 [B, N].
        parent: int32 [B, N], node numbers; -1 at the root.
        anc: int64 [B, N, W], W = ceil(N / 64), as tree_mask gives it for parent.
        depth: int32 [B, N].
        num_nodes: int32 [B], the nodes in use. The others are padding: token 0, parent -1, their own bit, depth 0.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride, or num_nodes out of range; on the CPU also a bad parent. The
            CUDA kernel never keeps an entry with a bad parent and sets bit 1 of `error`.

    Source: EAGLE-2 (arXiv 2406.16858), section 4.2, the reranking phase.

    Example:
        >>> score = torch.tensor([[-0.1, -2.0, -0.5]])
        >>> parent = torch.tensor([[-1, -1, 0]], dtype=torch.int32)  # entry 2 lies below entry 0
        >>> root, ids = torch.tensor([9]), torch.tensor([[5, 6, 7]])
        >>> tokens, parent, anc, depth, nodes = tree_rerank(root, score, ids, parent, 3)
        >>> tokens, parent, depth
        (tensor([[9, 5, 7]]), tensor([[-1,  0,  1]], dtype=torch.int32), tensor([[0, 1, 2]], dtype=torch.int32))
    """
    require_backend("tree_rerank", root_token)
    return torch.ops.sparrow.tree_rerank(root_token, hist_score, hist_id, hist_parent, num_nodes, error)


@fake_kernel("tree_rerank")
def _fake(
    root_token: Tensor,
    hist_score: Tensor,
    hist_id: Tensor,
    hist_parent: Tensor,
    num_nodes: int,
    error: Tensor | None = None,
) -> Tree:
    b = root_token.shape[0]
    return (
        root_token.new_empty((b, num_nodes)),
        root_token.new_empty((b, num_nodes), dtype=torch.int32),
        root_token.new_empty((b, num_nodes, (num_nodes + 63) // 64)),
        root_token.new_empty((b, num_nodes), dtype=torch.int32),
        root_token.new_empty((b,), dtype=torch.int32),
    )


def reference(root_token: Tensor, hist_score: Tensor, hist_id: Tensor, hist_parent: Tensor, num_nodes: int) -> Tree:
    """The definition, entry by entry."""
    b = root_token.shape[0]
    tokens = root_token.new_zeros(b, num_nodes)
    parent = hist_parent.new_full((b, num_nodes), -1)
    counts = hist_parent.new_zeros(b)
    for row in range(b):
        up = hist_parent[row].tolist()
        effective: list[float] = []
        for i, own in enumerate(hist_score[row].tolist()):
            bound = effective[up[i]] if up[i] >= 0 else torch.inf
            effective.append(-torch.inf if math.isnan(own) else min(own, bound))
        possible = [i for i, e in enumerate(effective) if e > -torch.inf]
        kept = sorted(sorted(possible, key=lambda i: (-effective[i], i))[: num_nodes - 1])
        node_of = {-1: 0} | {i: node for node, i in enumerate(kept, 1)}
        tokens[row, 0] = root_token[row]
        for i in kept:
            tokens[row, node_of[i]] = hist_id[row, i]
            parent[row, node_of[i]] = node_of[up[i]]
        counts[row] = len(kept) + 1
    return tokens, parent, *tree_mask.reference(parent), counts


def eager(root_token: Tensor, hist_score: Tensor, hist_id: Tensor, hist_parent: Tensor, num_nodes: int) -> Tree:
    """What a user would write: topk, sort, searchsorted for the parents.

    Needs scores that fall from parent to child; topk chooses among ties as it likes.
    """
    b, c = hist_score.shape
    best, index = hist_score.nan_to_num(-torch.inf, torch.inf, -torch.inf).topk(min(num_nodes - 1, c), dim=1)
    used = best > -torch.inf
    kept = torch.where(used, index, c).sort(dim=1).values  # unused ones last
    used, at = kept < c, kept.clamp(max=c - 1)
    up = hist_parent.gather(1, at).long()
    below = torch.where(up < 0, 0, torch.searchsorted(kept, up) + 1)
    tokens = root_token.new_zeros(b, num_nodes)
    parent = hist_parent.new_full((b, num_nodes), -1)
    tokens[:, 0] = root_token
    tokens[:, 1 : 1 + kept.shape[1]] = torch.where(used, hist_id.gather(1, at), 0)
    parent[:, 1 : 1 + kept.shape[1]] = torch.where(used, below, -1)
    return tokens, parent, *tree_mask.eager(parent), used.sum(1, dtype=torch.int32) + 1
