"""tree_attention: the nodes of a draft tree attend a long prefix and their own ancestors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparrow_ext._arguments import check_dims, fake_kernel, operator
from sparrow_ext._library import require_backend
from sparrow_ext.ops.tree_mask import unpack_words


@operator
def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_lens: Tensor,
    num_nodes: Tensor | None = None,
    anc: Tensor | None = None,
    scale: float | None = None,
    max_prefix_len: int | None = None,
    split_size: int = 0,
    error: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of tree nodes over the cache: all prefix rows, and of the tree rows the node's ancestors and itself.

    The tree's keys and values are already in the cache, node j of sequence b in row prefix_lens[b] + j
    (`rope_append`). One pass over the cache serves all nodes and all query heads of a kv head; softmax in float32.
    A row's bits depend on the row's own keys only, not on B, max_prefix_len or the number of threads; nor on N, but for
    16-bit dtypes on CUDA without a split_size, where 16 rows (N H / K) or fewer are summed in another order. On the CPU
    they depend on the sequence of these keys alone, not on where they lie: a node has the bits that it has at the end
    of its path, committed to the prefix.

    Args:
        q: float32, bfloat16 or float16 [B, N, H, D], roped, N <= 128, D <= 256; last dimension dense.
        k_cache: dtype of q, [B, Smax, K, D] with H a multiple of K; any strides with a dense last dimension.
        v_cache: as k_cache.
        prefix_lens: int32 [B]: prefix rows, >= 0; prefix_lens + N <= Smax.
        num_nodes: int32 [B]: nodes in use; None = N. The others give out 0 and lse -inf.
        anc: int64 [B, N, ceil(N / 64)], contiguous (`tree_mask`); bits of unused nodes are ignored. None = a chain:
            node i sees nodes 0..i.
        scale: factor of q . k; None = D ** -0.5.
        max_prefix_len: an upper bound of prefix_lens, which sizes the scratch; None = Smax.
        split_size: a row's keys (on CUDA the prefix) are cut into pieces at multiples of it, merged in order; 0 = the
            operator's own choice.
        error: int32 [1], the error word or None: a CUDA kernel that clamps a length or count sets its bit 2.

    Returns:
        out: [B, N, H, D], dtype of q. 0 for a row that sees nothing.
        lse: float32 [B, N, H], natural log of the sum of exp(scores); -inf for a row that sees nothing.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride; on the CPU also a prefix_lens or num_nodes out of range.

    Source: tree attention of SpecInfer (arXiv 2305.09781), section 4.2; split keys and online softmax as in
    FlashAttention-2 (arXiv 2307.08691).

    Example:
        >>> q, keys = torch.zeros(1, 2, 1, 4), torch.zeros(1, 5, 1, 4)
        >>> values = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 1, 4)
        >>> values = values.contiguous()
        >>> anc, _ = torch.ops.sparrow.tree_mask(torch.tensor([[-1, -1]], dtype=torch.int32))  # two roots
        >>> out, lse = tree_attention(q, keys, values, torch.tensor([2], dtype=torch.int32), anc=anc)
        >>> out[0, :, 0, 0]  # the means of values 0, 1 and 2, and of 0, 1 and 3
        tensor([1.0000, 1.3333])
    """
    require_backend("tree_attention", q)
    check_dims("tree_attention", "q", q, 4)
    check_dims("tree_attention", "k_cache", k_cache, 4)
    scale = max(q.shape[-1], 1) ** -0.5 if scale is None else scale
    max_prefix_len = k_cache.shape[1] if max_prefix_len is None else max_prefix_len
    return torch.ops.sparrow.tree_attention(
        q, k_cache, v_cache, prefix_lens, num_nodes, anc, scale, max_prefix_len, split_size, error
    )


@operator
def tree_attention_out(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_lens: Tensor,
    num_nodes: Tensor | None,
    anc: Tensor | None,
    scale: float,
    max_prefix_len: int,
    split_size: int,
    out: Tensor,
    lse: Tensor | None,
    workspace: Tensor,
    error: Tensor | None = None,
) -> None:
    """`tree_attention` into given tensors; allocates nothing.

    Args:
        q: see `tree_attention`.
        k_cache: see `tree_attention`.
        v_cache: see `tree_attention`.
        prefix_lens: see `tree_attention`.
        num_nodes: see `tree_attention`.
        anc: see `tree_attention`.
        scale: see `tree_attention`.
        max_prefix_len: see `tree_attention`.
        split_size: see `tree_attention`.
        out: written, [B, N, H, D], dtype of q, last dimension dense; may not overlap an input.
        lse: written, float32 [B, N, H], contiguous; None = not wanted.
        workspace: overwritten, uint8 of at least `tree_attention_workspace_size` bytes.
        error: see `tree_attention`.

    Raises:
        RuntimeError: as `tree_attention`, and a workspace that is too small.

    Example:
        >>> q, keys = torch.zeros(1, 2, 1, 4), torch.zeros(1, 5, 1, 4)
        >>> out = torch.empty(1, 2, 1, 4)
        >>> workspace = torch.empty(tree_attention_workspace_size(1, 2, 1, 4, 2), dtype=torch.uint8)
        >>> prefix = torch.tensor([2], dtype=torch.int32)
        >>> tree_attention_out(q, keys, torch.ones(1, 5, 1, 4), prefix, None, None, 0.5, 2, 0, out, None, workspace)
        >>> out[0, 1, 0]
        tensor([1., 1., 1., 1.])
    """
    require_backend("tree_attention_out", q)
    torch.ops.sparrow.tree_attention_out(
        q, k_cache, v_cache, prefix_lens, num_nodes, anc, scale, max_prefix_len, split_size, out, lse, workspace, error
    )


@torch.compiler.assume_constant_result
@operator
def tree_attention_workspace_size(B: int, N: int, H: int, D: int, max_prefix_len: int, split_size: int = 0) -> int:
    """Bytes of scratch `tree_attention_out` needs for these shapes; grows with each argument but split_size."""
    return torch.ops.sparrow.tree_attention_workspace_size(B, N, H, D, max_prefix_len, split_size)


@fake_kernel("tree_attention")
def _fake(q, k_cache, v_cache, prefix_lens, num_nodes, anc, scale, max_prefix_len, split_size=0, error=None):
    b, n, h, d = q.shape
    return q.new_empty((b, n, h, d)), q.new_empty((b, n, h), dtype=torch.float32)


@fake_kernel("tree_attention_out")
def _fake_out(*args):
    return None


def visibility(prefix_lens: Tensor, num_nodes: Tensor | None, anc: Tensor | None, nodes: int, rows: int) -> Tensor:
    """Bool [B, nodes, rows]: which of the cache's first `rows` rows each node sees."""
    b, device = prefix_lens.shape[0], prefix_lens.device
    used = torch.full((b,), nodes, device=device) if num_nodes is None else num_nodes
    node, row = torch.arange(nodes, device=device), torch.arange(rows, device=device)
    tree = node[None, :] <= node[:, None] if anc is None else unpack_words(anc, nodes)
    tree = tree.expand(b, nodes, nodes) & (node < used[:, None])[:, None, :]
    slot = (row - prefix_lens[:, None].long())[:, None, :].expand(b, nodes, rows)
    in_tree = (slot >= 0) & (slot < nodes)
    seen = tree.gather(2, slot.clamp(0, max(nodes - 1, 0))) if nodes else in_tree
    return ((slot < 0) | (in_tree & seen)) & (node < used[:, None])[:, :, None]


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention of q [B, N, H, D] over k, v [B, S, K, D] where visible [B, N, S]; out and lse."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bnhd,bshd->bnhs", q, k) * scale
    scores = scores.masked_fill(~visible[:, :, None, :], float("-inf"))
    lse = scores.logsumexp(-1)
    weights = torch.where(lse.isneginf()[..., None], torch.zeros_like(scores), (scores - lse[..., None]).exp())
    return torch.einsum("bnhs,bshd->bnhd", weights, v), lse


def reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_lens: Tensor,
    num_nodes: Tensor | None = None,
    anc: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, with a dense mask."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    visible = visibility(prefix_lens, num_nodes, anc, q.shape[1], k_cache.shape[1])
    return attend(q, k_cache, v_cache, visible, scale)


def eager(q: Tensor, k_cache: Tensor, v_cache: Tensor, visible: Tensor, scale: float | None = None) -> Tensor:
    """What a user would write: scaled_dot_product_attention with a prebuilt mask (`visibility`)."""
    k, v = (x[:, : visible.shape[-1]].transpose(1, 2) for x in (k_cache, v_cache))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=visible[:, None], scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)
