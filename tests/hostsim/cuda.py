"""The same test bodies on a real GPU: operators take CPU tensors, run on CUDA, and bring results and changes back."""

import torch

import sparrow_ext


def available() -> bool:
    return torch.cuda.is_available() and sparrow_ext.has_cuda_kernels("tree_mask")


class Gpu:
    """`ops.<name>(...)` as torch.ops.sparrow.<name> on CUDA, for arguments on the CPU."""

    class _Ops:
        def __getattr__(self, name: str):
            return lambda *args, **kwargs: _call(getattr(torch.ops.sparrow, name), args, kwargs)

    ops = _Ops()

    def configure(self, seed: int = 0, workers: int = 1) -> None:
        """Schedules are the GPU's own."""


def _call(op, args, kwargs):
    bases: dict[int, torch.Tensor] = {}

    def move(x):
        """Onto the GPU with the same strides, through the storage: views of one buffer stay views of one buffer."""
        if isinstance(x, list):
            return [move(one) for one in x]
        if not isinstance(x, torch.Tensor):
            return x
        key = x.untyped_storage().data_ptr()
        if key not in bases:
            whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
            bases[key] = whole.cuda()
        return bases[key].view(x.dtype).as_strided(x.shape, x.stride(), x.storage_offset())

    moved = [move(a) for a in args], {k: move(v) for k, v in kwargs.items()}
    result = op(*moved[0], **moved[1])
    for before, after in zip(_tensors(args, kwargs), _tensors(*moved), strict=True):
        before.copy_(after)
    if result is None or isinstance(result, torch.Tensor):
        return None if result is None else result.cpu()
    return tuple(r.cpu() for r in result)


def _tensors(args, kwargs) -> list[torch.Tensor]:
    """The tensors among the arguments, lists of them opened."""
    flat = [one for x in (*args, *kwargs.values()) for one in (x if isinstance(x, list) else [x])]
    return [x for x in flat if isinstance(x, torch.Tensor)]
