"""The same test bodies on a real GPU: operators take CPU tensors, run on CUDA, and bring results and changes back.

SPARROW_CUDA_CASES=all or few: the "cuda" cases run without a GPU, too, on the simulator behind the same copies: what is
wrong with the tests themselves shows there. (few: some of each test.)
"""

import os

import torch

import sparrow_ext

CASES = os.environ.get("SPARROW_CUDA_CASES", "")
PARAMETER = -1  # the `sim` parameter of the "cuda" cases: a number, as tests reckon with the seeds


def available() -> bool:
    return bool(CASES) or (torch.cuda.is_available() and sparrow_ext.has_cuda_kernels("tree_mask"))


class Moved:
    """`ops.<name>(...)` as `namespace.<name>` on another device, for arguments on the CPU."""

    class _Ops:
        def __init__(self, namespace, device: str):
            self._namespace, self._device = namespace, device

        def __getattr__(self, name: str):
            return lambda *args, **kwargs: _call(getattr(self._namespace, name), self._device, args, kwargs)

    def __init__(self, namespace, device: str):
        self.ops = self._Ops(namespace, device)

    def configure(self, seed: int = 0, workers: int = 1, shared_kib: int = 0) -> None:
        """Schedules and memory are the GPU's own."""


def _call(op, device: str, args, kwargs):
    bases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of each storage: its bytes here, and there

    def move(x):
        """There with the same strides, through the storage: views of one buffer stay views of one buffer."""
        if isinstance(x, list):
            return [move(one) for one in x]
        if not isinstance(x, torch.Tensor):
            return x
        storage = x.untyped_storage()
        if storage.data_ptr() not in bases:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            bases[storage.data_ptr()] = whole, whole.to(device, copy=True)
        there = bases[storage.data_ptr()][1]
        there = there[: there.numel() // x.itemsize * x.itemsize].view(x.dtype)
        return there.as_strided(x.shape, x.stride(), x.storage_offset())

    result = op(*[move(a) for a in args], **{k: move(v) for k, v in kwargs.items()})
    for here, there in bases.values():
        here.copy_(there)
    return type(result)(map(_back, result)) if isinstance(result, tuple | list) else _back(result)


def _back(x):
    return x.cpu() if isinstance(x, torch.Tensor) else x
