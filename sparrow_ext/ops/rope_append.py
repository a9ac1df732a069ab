"""rope_append: rotary embedding of new queries and keys, and the append to the key and value cache."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def rope_append(
    q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, slots: Tensor, k_cache: Tensor, v_cache: Tensor
) -> None:
    """Ropes q in place; ropes k and writes it and v to cache rows.

    y[d] = x[d] cos[d] - x[d + D/2] sin[d], y[d + D/2] = x[d + D/2] cos[d] + x[d] sin[d], in float32, rounded once.

    Args:
        q: float32, bfloat16 or float16 [B, N, H, D], D even, last dimension dense; changed in place.
        k: dtype of q, [B, N, K, D], un-roped, last dimension dense; not changed.
        v: as k.
        cos_sin: float32 [B, N, D], contiguous: per node the cos of the D/2 frequencies, then their sin (M-RoPE mixed
            by the caller).
        slots: int32 [B, N], contiguous: cache row of each node in [0, Smax), or -1: q is roped, nothing is appended.
            Of two nodes of a sequence with the same slot the later one stays.
        k_cache: dtype of q, [B, Smax, K, D], any strides with a dense last dimension; rows `slots` are written.
        v_cache: as k_cache.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride; on the CPU also a slot out of range
            (nothing is changed then).

    Source: rotary position embedding, RoFormer (arXiv 2104.09864), in the rotate-half layout of transformers.

    Example:
        >>> q, k, v = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]]), torch.ones(1, 1, 1, 2)
        >>> keys, values = torch.zeros(2, 1, 3, 1, 2)
        >>> quarter = torch.tensor([[[0.0, 1.0]]])  # cos and sin of 90 degrees
        >>> rope_append(q, k, v, quarter, torch.tensor([[2]], dtype=torch.int32), keys, values)
        >>> q.flatten(), keys.flatten()
        (tensor([0., 1.]), tensor([ 0.,  0.,  0.,  0., -1.,  0.]))
    """
    require_backend("rope_append", q)
    torch.ops.sparrow.rope_append(q, k, v, cos_sin, slots, k_cache, v_cache)


@fake_kernel("rope_append")
def _fake(q, k, v, cos_sin, slots, k_cache, v_cache):
    return None


def rope(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate-half rope of x [B, N, heads, D] by cos_sin [B, N, D], in the dtype of x."""
    cos, sin = (c.to(x.dtype)[:, :, None] for c in cos_sin.chunk(2, -1))
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def reference(
    q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, slots: Tensor, k_cache: Tensor, v_cache: Tensor
) -> None:
    """The definition, row by row; mutates as the operator does."""
    q.copy_(rope(q, cos_sin))
    roped = rope(k, cos_sin)
    for b, row in enumerate(slots.tolist()):
        for n, slot in enumerate(row):
            if slot >= 0:
                k_cache[b, slot] = roped[b, n]
                v_cache[b, slot] = v[b, n]


def eager(q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, start: int, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """What a user would write for slots start, start + 1, ...: rope in the dtype, slice copies. Returns the roped q."""
    end = start + q.shape[1]
    k_cache[:, start:end] = rope(k, cos_sin)
    v_cache[:, start:end] = v
    return rope(q, cos_sin)
