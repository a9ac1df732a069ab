"""What a round does, operator by operator: recorded, compared, repeated on the same memory as a CUDA graph would."""

import contextlib
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

HOST_READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero")
# Operators whose results, or whose number of results, the host must look at; and those that carry host values along.
REFUSED = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave", "lift_fresh", "scalar_tensor",
}  # fmt: skip


def described(value: object) -> object:
    """A tensor by dtype, shape and strides; all else as it is."""
    return (value.dtype, tuple(value.shape), value.stride()) if isinstance(value, Tensor) else value


class Recorder(TorchDispatchMode):
    """Runs operators and keeps them; refuses those that read on the host.

    Attributes:
        calls: (operator, arguments, keyword arguments, result) of each.
    """

    def __init__(self):
        super().__init__()
        self.calls, self._undo = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        masks = func.overloadpacket._qualified_op_name.startswith("aten::index") and [
            index for index in (args[1] if isinstance(args[1], list | tuple) else []) if index is not None
        ]
        if func.overloadpacket.__name__ in REFUSED or any(m.dtype in (torch.bool, torch.uint8) for m in masks or []):
            raise AssertionError(f"{func} reads on the host")
        for given, argument in zip(args, func._schema.arguments, strict=False):
            self._keep(given, argument)
        for argument in func._schema.arguments:
            if argument.name in kwargs:
                self._keep(kwargs[argument.name], argument)
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def _keep(self, given: object, argument) -> None:
        if argument.alias_info is not None and argument.alias_info.is_write and given is not None:
            for tensor in given if isinstance(given, list | tuple) else [given]:
                self._undo.append((tensor, tensor.detach().clone()))

    def undo(self) -> None:
        """Takes back what was written: a capture executes nothing."""
        for tensor, before in reversed(self._undo):
            tensor.copy_(before)
        self._undo.clear()

    def trace(self) -> list[object]:
        """What a graph would have fixed: operators, shapes, Python scalars."""
        return [(str(func), tree_map(described, (args, kwargs))) for func, args, kwargs, _ in self.calls]

    def replay(self) -> None:
        """Every operator once more, on the recorded arguments, into the recorded results."""
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new, returned in zip(*(_all(r, func) for r in (result, again)), func._schema.returns, strict=True):
                if returned.alias_info is None:  # else a view, or what was written in place
                    for one, other in zip(_listed(old), _listed(new), strict=True):
                        one.copy_(other)


def _all(result: object, func) -> list[object]:
    """One value for each that the operator's schema returns."""
    return list(result) if len(func._schema.returns) > 1 else [] if result is None else [result]


def _listed(value: Tensor | list[Tensor]) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


class Emulated:
    """sparrow.decoding.runner.Graph by a Recorder."""

    made: ClassVar[list["Emulated"]] = []

    def __init__(self):
        self.recorder, self.replays = Recorder(), 0
        self.made.append(self)

    def capture(self, run):
        with host_reads() as reads, self.recorder:
            run()
        assert not reads, reads
        self.recorder.undo()

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            self.recorder.replay()


@contextlib.contextmanager
def host_reads():
    """Yields the list of names of Tensor methods that read a tensor on the host, as they are called inside."""
    names: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in HOST_READS:
            original = getattr(torch.Tensor, name)

            def counted(self, *args, _name=name, _original=original, **kwargs):
                names.append(_name)
                length = len(names)
                try:
                    return _original(self, *args, **kwargs)
                finally:
                    del names[length:]  # one conversion may use another

            patch.setattr(torch.Tensor, name, counted)
        yield names
