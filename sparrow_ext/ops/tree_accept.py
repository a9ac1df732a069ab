"""tree_accept: which drafted nodes the target agrees with."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def tree_accept(
    tokens: Tensor,
    parent: Tensor,
    target: Tensor,
    num_nodes: Tensor | None,
    max_path: int,
    error: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Walks each draft tree from its root along the nodes whose tokens the target chose.

    At a node, the walk goes on to the LOWEST-index child whose token equals the target's choice there, and stops where
    there is none or after max_path nodes. Only node 0's tree is walked. A later sibling with the same token is never
    followed, whatever lies below it: with one sampled choice per node, picking among duplicates by their
    continuation would bias the output.

    Args:
        tokens: int64 [B, N], N <= 128, contiguous; tokens[b, 0] is the round's root, already emitted.
        parent: int32 [B, N], contiguous; parent[b, i] lies in [-1, i).
        target: int64 [B, N], contiguous; the target's (argmax or sampled) token after each node.
        num_nodes: int32 [B] in [0, N]; the nodes beyond are padding. None: all N are nodes.
        max_path: nodes a path may hold, root included; at least 1.
        error: int32 [1], the error word (see `sparrow_ext.error_word`), or None. Mutated by the CUDA kernel only.

    Returns:
        num_path: int32 [B], the nodes on the path, root included: the KV rows to keep and the tokens emitted this round
            (num_path - 1 accepted and one of the target's own). 0 only for an empty tree.
        path: int32 [B, max_path], their node numbers, strictly increasing, path[b, 0] = 0; padded with -1.
        out_tokens: int64 [B, max_path], out_tokens[b, j] = target[b, path[b, j]]; padded with -1.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride; on the CPU also a bad parent or count. The CUDA
            kernel never accepts a node with a bad parent, clamps counts, and sets bits 1 and 2 of `error`.

    Source: SpecInfer (arXiv 2305.09781), algorithm 2, for a target choice drawn once per node.

    Example:
        >>> tokens = torch.tensor([[7, 4, 5, 6]])  # the root 7, its children 4 and 5, and 6 below 5
        >>> parent = torch.tensor([[-1, 0, 0, 2]], dtype=torch.int32)
        >>> num_path, path, emitted = tree_accept(tokens, parent, torch.tensor([[5, 0, 6, 9]]), None, 4)
        >>> num_path, path, emitted
        (tensor([3], dtype=torch.int32), tensor([[ 0,  2,  3, -1]], dtype=torch.int32), tensor([[ 5,  6,  9, -1]]))
    """
    require_backend("tree_accept", tokens)
    return torch.ops.sparrow.tree_accept(tokens, parent, target, num_nodes, max_path, error)


@fake_kernel("tree_accept")
def _fake(
    tokens: Tensor,
    parent: Tensor,
    target: Tensor,
    num_nodes: Tensor | None,
    max_path: int,
    error: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    b = tokens.shape[0]
    return (
        tokens.new_empty((b,), dtype=torch.int32),
        tokens.new_empty((b, max_path), dtype=torch.int32),
        tokens.new_empty((b, max_path)),
    )


def reference(
    tokens: Tensor, parent: Tensor, target: Tensor, num_nodes: Tensor | None, max_path: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: node by node, child by child."""
    b, n = tokens.shape
    num_path = parent.new_zeros(b)
    path = parent.new_full((b, max_path), -1)
    out_tokens = tokens.new_full((b, max_path), -1)
    for row in range(b):
        count = n if num_nodes is None else int(num_nodes[row])
        walk = [0] if count else []
        while walk and len(walk) < max_path:
            at = walk[-1]
            children = [i for i in range(count) if parent[row, i] == at and tokens[row, i] == target[row, at]]
            if not children:
                break
            walk.append(children[0])
        num_path[row] = len(walk)
        path[row, : len(walk)] = torch.tensor(walk, dtype=torch.int32)
        out_tokens[row, : len(walk)] = target[row, walk]
    return num_path, path, out_tokens


def eager(
    tokens: Tensor, parent: Tensor, target: Tensor, num_nodes: Tensor | None, max_path: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What a user would write: one sweep over Python lists (faster on a CPU than any composition of tensor ops)."""
    b, n = tokens.shape
    counts = [n] * b if num_nodes is None else num_nodes.tolist()
    lengths, paths, outs = [], [], []
    for count, token, up, choice in zip(counts, tokens.tolist(), parent.tolist(), target.tolist(), strict=True):
        walk, at = ([0], 0) if count else ([], -1)
        for i in range(1, count):
            if len(walk) == max_path:
                break
            if up[i] == at and token[i] == choice[at]:
                walk.append(i)
                at = i
        padding = [-1] * (max_path - len(walk))
        lengths.append(len(walk))
        paths.append(walk + padding)
        outs.append([choice[i] for i in walk] + padding)
    return (
        torch.tensor(lengths, dtype=torch.int32, device=tokens.device),
        torch.tensor(paths, dtype=torch.int32, device=tokens.device).view(b, max_path),
        torch.tensor(outs, dtype=torch.int64, device=tokens.device).view(b, max_path),
    )
