"""tree_mask: ancestor words and depths of draft trees."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend

MAX_NODES = 128


@operator
def tree_mask(parent: Tensor, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ancestor words and depths of draft trees.

    Args:
        parent: int32 [B, N], N <= 128, contiguous. parent[b, i] lies in [-1, i); -1 makes node i a root.
        error: int32 [1], the error word (see `sparrow_ext.error_word`), or None. Mutated by the CUDA kernel only.

    Returns:
        anc: int64 [B, N, W], W = ceil(N / 64): bit j of word w (as uint64) = "the node sees node 64 w + j"; a node
            sees itself and its ancestors. Test bits with `(word >> j) & 1`, never by comparing words.
        depth: int32 [B, N], 0 at a root.

    Raises:
        RuntimeError: wrong dtype, shape or stride; on the CPU also a parent outside [-1, i). The CUDA kernel treats a
            bad parent as -1 and sets bit 1 of `error`.

    Source: the ancestor mask of tree verification, SpecInfer (arXiv 2305.09781), section 4.2.

    Example:
        >>> anc, depth = tree_mask(torch.tensor([[-1, 0, 0, 1]], dtype=torch.int32))
        >>> [f"{word:04b}" for word in anc.flatten().tolist()], depth
        (['0001', '0011', '0101', '1011'], tensor([[0, 1, 1, 2]], dtype=torch.int32))
    """
    require_backend("tree_mask", parent)
    return torch.ops.sparrow.tree_mask(parent, error)


@fake_kernel("tree_mask")
def _fake(parent: Tensor, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
    b, n = parent.shape
    return parent.new_empty((b, n, (n + 63) // 64), dtype=torch.int64), parent.new_empty((b, n), dtype=torch.int32)


def reference(parent: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, node by node."""
    b, n = parent.shape
    visible = torch.zeros(b, n, (n + 63) // 64 * 64, dtype=torch.bool)
    depth = torch.zeros(b, n, dtype=torch.int32)
    for row in range(b):
        for i in range(n):
            up = int(parent[row, i])
            if up >= 0:
                visible[row, i] = visible[row, up]
                depth[row, i] = depth[row, up] + 1
            visible[row, i, i] = True
    return pack_words(visible), depth


def eager(parent: Tensor) -> tuple[Tensor, Tensor]:
    """What a user would write: pointer jumping on a dense boolean matrix, then packing."""
    b, n = parent.shape
    visible = torch.eye(n, (n + 63) // 64 * 64, dtype=torch.bool, device=parent.device).repeat(b, 1, 1)
    up = parent.long()
    for _ in range(max(n - 1, 0).bit_length()):
        has_parent = (up >= 0).unsqueeze(-1)
        at = up.clamp(min=0)
        visible = visible | (visible.gather(1, at.unsqueeze(-1).expand_as(visible)) & has_parent)
        up = torch.where(up >= 0, up.gather(1, at), up)
    return pack_words(visible), visible.sum(-1, dtype=torch.int32) - 1


def pack_words(visible: Tensor) -> Tensor:
    """Bool [..., 64 W] -> int64 [..., W]; bit j of word w is visible[..., 64 w + j]."""
    bits = visible.unflatten(-1, (-1, 64)).long()
    return (bits << torch.arange(64, device=visible.device)).sum(-1)


def unpack_words(words: Tensor, nodes: int) -> Tensor:
    """int64 [..., W] -> bool [..., nodes]."""
    bits = (words.unsqueeze(-1) >> torch.arange(64, device=words.device)) & 1
    return bits.flatten(-2)[..., :nodes].bool()
