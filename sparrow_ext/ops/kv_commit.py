"""kv_commit: keeps the accepted rows of a verified tree, in place, for all layers in one call."""

import torch
from torch import Tensor

from sparrow_ext._arguments import fake_kernel, operator
from sparrow_ext._library import require_backend


@operator
def kv_commit(
    kv: Tensor,
    path: Tensor,
    num_path: Tensor,
    base_lens: Tensor,
    new_lens: Tensor,
    error: Tensor | None = None,
) -> None:
    """Moves the cache rows of the accepted nodes to the front of the tree, in every layer, in place.

    kv[l, c, b, base + j] = kv[l, c, b, base + path[b, j]] for j < num_path[b], with base = base_lens[b];
    new_lens = base_lens + num_path. No other row changes.

    Args:
        kv: [L, 2, B, S, K, D], any dtype, any strides with a dense last dimension (a buffer kept as [L, 2, B, K, S, D]
            passes `buffer.transpose(3, 4)`). Row base + i holds tree node i. Mutated.
        path: int32 [B, P], contiguous; the first num_path[b] entries strictly increase within [0, S - base).
        num_path: int32 [B] in [0, P].
        base_lens: int32 [B], rows before the tree; base_lens + num_path <= S.
        new_lens: int32 [B], another tensor than base_lens, so that a replay starts from the same lengths. Mutated.
        error: int32 [1], the error word (see `sparrow_ext.error_word`), or None. Mutated by the CUDA kernel only.

    Raises:
        RuntimeError: wrong device, dtype, shape or stride, or overlapping arguments; on the CPU also a bad path, count
            or length. The checks come first: after an error nothing has moved. The CUDA kernel skips bad entries,
            clamps counts, and sets bits 4 and 2 of `error`.

    Example:
        >>> ints = lambda *x: torch.tensor(x, dtype=torch.int32)
        >>> kv = torch.arange(6.0).repeat(2, 1).view(1, 2, 1, 6, 1, 1)  # two rows of prefix, four of the tree
        >>> lengths = ints(0)
        >>> kv_commit(kv, ints([0, 2, 3]), ints(3), ints(2), lengths)  # node 1 was not accepted
        >>> kv[0, 0].flatten(), lengths
        (tensor([0., 1., 2., 4., 5., 5.]), tensor([5], dtype=torch.int32))
    """
    require_backend("kv_commit", kv)
    torch.ops.sparrow.kv_commit(kv, path, num_path, base_lens, new_lens, error)


@operator
def kv_commit_layers(
    keys: list[Tensor],
    values: list[Tensor],
    path: Tensor,
    num_path: Tensor,
    base_lens: Tensor,
    new_lens: Tensor,
    error: Tensor | None = None,
) -> None:
    """`kv_commit` for a cache of one tensor per layer; one launch per 64 layers.

    Args:
        keys: one [B, S, K, D] per layer, any dtype and any strides with a dense last dimension; shape, strides, dtype
            and device are the same for all of keys and values, and no two of them overlap. Mutated.
        values: as keys.
        path: see `kv_commit`, as the arguments after it.
        num_path: see `kv_commit`.
        base_lens: see `kv_commit`.
        new_lens: see `kv_commit`. Mutated.
        error: see `kv_commit`.

    Raises:
        RuntimeError: as `kv_commit`; no layer, unequally many keys and values, one that differs, or
            one given twice.

    Example:
        >>> ints = lambda *x: torch.tensor(x, dtype=torch.int32)
        >>> keys, values = ([torch.arange(6.0).view(1, 6, 1, 1)] for _ in range(2))
        >>> kv_commit_layers(keys, values, ints([0, 2, 3]), ints(3), ints(2), ints(0))
        >>> keys[0].flatten()
        tensor([0., 1., 2., 4., 5., 5.])
    """
    require_backend("kv_commit_layers", path)
    torch.ops.sparrow.kv_commit_layers(keys, values, path, num_path, base_lens, new_lens, error)


@fake_kernel("kv_commit")
def _fake(
    kv: Tensor,
    path: Tensor,
    num_path: Tensor,
    base_lens: Tensor,
    new_lens: Tensor,
    error: Tensor | None = None,
) -> None:
    return None


@fake_kernel("kv_commit_layers")
def _fake_layers(*args) -> None:
    return None


def reference(
    kv: Tensor,
    path: Tensor,
    num_path: Tensor,
    base_lens: Tensor,
    new_lens: Tensor,
) -> None:
    """The definition: every row read from a copy of the old cache."""
    old = kv.clone()
    for b in range(kv.shape[2]):
        base, count = int(base_lens[b]), int(num_path[b])
        for j in range(count):
            kv[:, :, b, base + j] = old[:, :, b, base + int(path[b, j])]
        new_lens[b] = base + count


def eager(
    kv: Tensor,
    path: Tensor,
    num_path: Tensor,
    base_lens: Tensor,
    new_lens: Tensor,
) -> None:
    """What a user would write: index_select and copy_, layer by layer."""
    caches = [cache for layer in kv.unbind(0) for cache in layer.unbind(0)]
    _eager(caches, 0, path, num_path, base_lens, new_lens)


def eager_stacked(
    kv: Tensor,
    path: Tensor,
    num_path: Tensor,
    base_lens: Tensor,
    new_lens: Tensor,
) -> None:
    """The same where all layers share one buffer: one index_select and one copy_ per sequence."""
    _eager([kv], 2, path, num_path, base_lens, new_lens)


def _eager(
    caches: list[Tensor],
    dim: int,
    path: Tensor,
    num_path: Tensor,
    base_lens: Tensor,
    new_lens: Tensor,
) -> None:
    """One index_select and one copy_ per sequence and cache; dimension `dim` of a cache is the batch, the next its
    rows.
    """
    for b, (base, count) in enumerate(zip(base_lens.tolist(), num_path.tolist(), strict=True)):
        in_cache = path[b, :count] + base
        for cache in caches:
            own = cache.select(dim, b)
            own.narrow(dim, base, count).copy_(own.index_select(dim, in_cache))
    torch.add(base_lens, num_path, out=new_lens)
