"""gather_rows: copies indexed rows behind each other."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def gather_rows(
    src: Tensor, index: Tensor, count: Tensor, dst: Tensor, dst_start: Tensor, error: Tensor | None = None
) -> None:
    """dst[b, dst_start[b] + i] = src[b, index[b, i]] for i < count[b]. No other row of dst changes.

    Args:
        src: [B, S, ...], any dtype; the dimensions behind the first two are one dense row.
        index: int32 [B, I], contiguous; the first count[b] entries lie in [0, S), the others are ignored.
        count: int32 [B] in [0, I].
        dst: [B, cap, ...] of src's dtype and row, not overlapping src. Mutated.
        dst_start: int32 [B], dst_start + count <= cap.
        error: int32 [1], the error word (see `sparrow_ext.error_word`), or None. Mutated by the CUDA kernel only.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride, or overlapping src and dst; on the CPU also a bad index,
            count or start. The checks come first: after an error nothing has been written. The CUDA kernel skips bad
            entries, clamps counts, and sets bits 4 and 2 of `error`.

    Example:
        >>> ints = lambda *x: torch.tensor(x, dtype=torch.int32)
        >>> src, dst = torch.arange(4.0).view(1, 4, 1), torch.zeros(1, 5, 1)
        >>> gather_rows(src, ints([3, 1, 0]), ints(2), dst, ints(1))
        >>> dst.flatten()
        tensor([0., 3., 1., 0., 0.])
    """
    require_backend("gather_rows", src)
    torch.ops.sparrow.gather_rows(src, index, count, dst, dst_start, error)


@fake_kernel("gather_rows")
def _fake(
    src: Tensor, index: Tensor, count: Tensor, dst: Tensor, dst_start: Tensor, error: Tensor | None = None
) -> None:
    return None


def reference(src: Tensor, index: Tensor, count: Tensor, dst: Tensor, dst_start: Tensor) -> None:
    """The definition, row by row."""
    for b in range(src.shape[0]):
        for i in range(int(count[b])):
            dst[b, int(dst_start[b]) + i] = src[b, int(index[b, i])]


def eager(src: Tensor, index: Tensor, count: Tensor, dst: Tensor, dst_start: Tensor) -> None:
    """What a user would write: index_select straight into dst, sequence by sequence."""
    for b, (n, start) in enumerate(zip(count.tolist(), dst_start.tolist(), strict=True)):
        torch.index_select(src[b], 0, index[b, :n], out=dst[b, start : start + n])
