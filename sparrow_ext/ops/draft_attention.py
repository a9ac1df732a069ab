"""draft_attention: the drafter's rotary embedding, cache append and attention in one call."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparrow_ext._arguments import check_dims, fake_kernel, operator
from sparrow_ext._library import require_backend
from sparrow_ext.ops.rope_append import rope
from sparrow_ext.ops.tree_attention import attend
from sparrow_ext.ops.tree_mask import unpack_words


@operator
def draft_attention(
    qkv: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_lens: Tensor,
    tree_start: Tensor,
    anc: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    n_anchor: int = 0,
    num_rows: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    error: Tensor | None = None,
) -> Tensor:
    """Ropes T new rows, appends their keys and values to the drafter's cache and attends text rows and tree slots.

    Row i of sequence b goes to cache row seq_lens[b] + tree_start[b] + i; tree slot j is cache row seq_lens[b] + j. It
    attends the text rows [0, seq_lens[b]) (with a window only rows [0, n_anchor) and the last `window` of them) and the
    tree slots of its words. Equals `rope_append` followed by `tree_attention` bit for bit.

    Args:
        qkv: float32, bfloat16 or float16 [B, T, (H + 2 K) D], un-roped: H query, K key, K value heads; last dimension
            dense, D even and <= 256.
        cos_sin: float32 [B, T, D], contiguous: cos of the D/2 frequencies, then their sin.
        k_cache: dtype of qkv, [B, Smax, K, D], any strides with a dense last dimension; the new rows are written.
        v_cache: as k_cache.
        seq_lens: int32 [B]: text rows in the cache.
        tree_start: int32 [B]: tree slots in use before these rows; tree_start + T <= 128 and seq_lens + tree_start + T
            <= Smax.
        anc: int64 [B, T, W], contiguous: bit j of word w = "sees tree slot 64 w + j", W words enough for tree_start + T
            slots. None = causal: row i sees slots 0..tree_start + i.
        scale: factor of q . k; None = D ** -0.5.
        window: 0 = all text rows; else the number of last text rows seen beside the anchors.
        n_anchor: first text rows that stay visible with a window.
        num_rows: int32 [B]: rows in use; None = T. The others write nothing, neither cache nor out.
        out: written, [B, T, H, D], dtype of qkv, last dimension dense; None = a new tensor, zero in unused rows.
        workspace: overwritten, uint8 of at least draft_attention_workspace_size(B, T, H, D, Smax) bytes (with a window
            min(Smax, n_anchor + window) is enough for the last argument); None = allocated here.
        error: int32 [1], the error word or None: a CUDA kernel that clamps a length or count sets its bit 2.

    Returns:
        out.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride; on the CPU also lengths out of range
            (nothing is changed then).

    Example:
        >>> qkv = torch.zeros(1, 1, 3 * 4)  # one row: a query, a key and a value of head_dim 4
        >>> qkv[..., 8:] = 2.0
        >>> cos_sin = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
        >>> keys, values = torch.zeros(1, 8, 1, 4), torch.ones(1, 8, 1, 4)
        >>> length, start = torch.tensor([3], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
        >>> draft_attention(qkv, cos_sin, keys, values, length, start)  # the mean of three ones and a two
        tensor([[[[1.2500, 1.2500, 1.2500, 1.2500]]]])
        >>> values[0, 3, 0]
        tensor([2., 2., 2., 2.])
    """
    require_backend("draft_attention", qkv)
    check_dims("draft_attention", "qkv", qkv, 3)
    check_dims("draft_attention", "k_cache", k_cache, 4)
    b, t, width = qkv.shape
    rows, kv_heads, d = k_cache.shape[1:]
    heads = width // max(d, 1) - 2 * kv_heads
    if heads < 1:
        raise RuntimeError(
            f"sparrow::draft_attention: qkv must have (H + 2 K) D columns, K = {kv_heads} and D = {d} of k_cache, "
            f"got {width}"
        )
    if out is None:
        out = qkv.new_zeros((b, t, heads, d))
    if workspace is None:
        size = draft_attention_workspace_size(b, t, heads, d, min(rows, window + n_anchor) if window > 0 else rows)
        workspace = torch.empty(size, dtype=torch.uint8, device=qkv.device)
    scale = max(d, 1) ** -0.5 if scale is None else scale
    torch.ops.sparrow.draft_attention(
        qkv, cos_sin, k_cache, v_cache, seq_lens, tree_start, anc, scale, window, n_anchor, num_rows, out, workspace,
        error,
    )  # fmt: skip
    return out


@operator
def draft_attention_workspace_size(B: int, T: int, H: int, D: int, max_len: int) -> int:
    """Bytes of scratch `draft_attention` needs; max_len: text rows seen at most. Grows with each argument.

    The formula of `torch.ops.sparrow.draft_attention_workspace_size` once more, in Python: torch.compile cannot trace
    an operator that returns an int.
    """
    for name, value in {"B": B, "T": T, "H": H, "D": D, "max_len": max_len}.items():
        if not 0 <= value < 2**31:
            raise RuntimeError(
                f"sparrow::draft_attention_workspace_size: {name} must lie in [0, {2**31 - 1}], got {value}"
            )
    roped = (B * T * H * D * 4 + 63) // 64 * 64
    splits = max((max_len + 128) // 1024 + 1, min(max_len // 128 + 1, 33))  # the CPU's and the GPU's
    return roped + B * T * H * splits * ((D + 15) // 16 * 16 + 2) * 4


@fake_kernel("draft_attention")
def _fake(*args):
    return None


def visibility(
    seq_len: int, tree_start: int, anc: Tensor | None, rows: int, window: int = 0, n_anchor: int = 0
) -> Tensor:
    """Bool [T, S]: which of the cache's first S = seq_len + tree_start + T rows each of T new rows sees; anc [T, W]."""
    slots = tree_start + rows
    text = torch.ones(rows, seq_len, dtype=torch.bool)
    if window > 0:
        text[:, n_anchor : max(seq_len - window, n_anchor)] = False
    causal = torch.arange(slots) <= tree_start + torch.arange(rows)[:, None]
    tree = causal if anc is None else unpack_words(anc, slots)
    return torch.cat((text, tree), 1)


def reference(
    qkv: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_len: int,
    tree_start: int,
    visible: Tensor,
    scale: float | None = None,
) -> Tensor:
    """The definition for one sequence (B = 1) and `visibility`; writes the caches, returns out [1, T, H, D]."""
    q, k, v = split_heads(qkv, k_cache)
    at = seq_len + tree_start
    k_cache[:, at : at + k.shape[1]] = rope(k, cos_sin)
    v_cache[:, at : at + v.shape[1]] = v
    rows = visible.shape[-1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return attend(rope(q, cos_sin), k_cache[:, :rows], v_cache[:, :rows], visible[None], scale)[0]


def eager(
    qkv: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_len: int,
    tree_start: int,
    visible: Tensor,
    scale: float | None = None,
) -> Tensor:
    """What a user would write: rope, slice copies, scaled_dot_product_attention with a prebuilt mask (B = 1)."""
    q, k, v = split_heads(qkv, k_cache)
    at, rows = seq_len + tree_start, visible.shape[-1]
    k_cache[:, at : at + k.shape[1]] = rope(k, cos_sin)
    v_cache[:, at : at + v.shape[1]] = v
    query = rope(q, cos_sin).transpose(1, 2)
    keys, values = (x[:, :rows].transpose(1, 2) for x in (k_cache, v_cache))
    mask = visible[None, None]
    return F.scaled_dot_product_attention(query, keys, values, mask, scale=scale, enable_gqa=True).transpose(1, 2)


def split_heads(qkv: Tensor, k_cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Splits qkv [B, T, (H + 2 K) D] into q [B, T, H, D], k and v [B, T, K, D]."""
    kv_heads, d = k_cache.shape[2:]
    heads = qkv.unflatten(-1, (-1, d))
    return heads.split([heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)
