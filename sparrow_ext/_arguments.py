"""What is said about arguments of the wrong kind, in every operator's wrapper and fake kernel."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def operator(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates an operator's wrapper: an argument of the wrong kind is one line that names it.

    The dispatcher's own words for these are a page long and do not say which argument it was. Arguments are looked at
    only once something has been raised, so a call that works pays for one more frame.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception:
            for fault in _faults(function.__name__, signature, args, kwargs):
                raise fault from None
            raise

    return call


def fake_kernel(op: str) -> Callable[[Callable], Callable]:
    """Registers a fake kernel. It runs only where all tensors of a call are on one device.

    One meta tensor among others is enough for torch to call the fake kernel, and what that returns is not computed.
    """

    def register(function: Callable) -> Callable:
        names = [argument.name for argument in getattr(torch.ops.sparrow, op).default._schema.arguments]

        @functools.wraps(function)
        def checked(*args, **kwargs):
            for fault in _device_faults(op, {**dict(zip(names, args, strict=False)), **kwargs}):
                raise fault
            return function(*args, **kwargs)

        torch.library.register_fake(f"sparrow::{op}")(checked)
        return function

    return register


def check_dims(op: str, name: str, tensor: Tensor, dims: int) -> None:
    """Raises RuntimeError where `tensor` has other than `dims` dimensions: for wrappers that read its shape."""
    if tensor.dim() != dims:
        raise RuntimeError(f"sparrow::{op}: {name} must have {dims} dimensions, got shape {list(tensor.shape)}")


def _tensors(values: dict[str, object]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among arguments by name, those of lists as name[i]."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from ((f"{name}[{i}]", one) for i, one in enumerate(value) if isinstance(one, Tensor))


def _device_faults(op: str, values: dict[str, object]) -> Iterator[Exception]:
    first = None
    for name, tensor in _tensors(values):
        first = first or (name, tensor.device)
        if tensor.device != first[1]:
            yield RuntimeError(
                f"sparrow::{op}: {name} must be on the device of {first[0]} ({first[1]}), got {tensor.device}"
            )


def _faults(op: str, signature: inspect.Signature, args: tuple, kwargs: dict[str, object]) -> Iterator[Exception]:
    """What is wrong with the kinds of the arguments, one after the other."""
    try:
        values = signature.bind(*args, **kwargs).arguments
    except TypeError:  # too many or too few: Python has said so
        return
    for name, value in values.items():
        hint = signature.parameters[name].annotation
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(WORDS[kind] for kind in kinds)
            yield TypeError(f"sparrow::{op}: {name} must be {wanted}, got {_arrived(value)}")
    for name, tensor in _tensors(values):
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else tensor.layout
            yield RuntimeError(f"sparrow::{op}: {name} must be a dense (torch.strided) tensor, got {kind}")
        elif tensor.device.type not in ("cpu", "cuda", "meta"):
            yield RuntimeError(f"sparrow::{op}: {name} must be on the CPU or a CUDA device, got {tensor.device}")
    yield from _device_faults(op, values)


WORDS = {
    Tensor: "a tensor",
    int: "an int of 64 bits",
    float: "a float",
    str: "a string",
    type(None): "None",
    list[Tensor]: "a list of tensors",
    list[Tensor | None]: "a list of optional tensors",
}


def _is(value: object, kind: object) -> bool:
    """Whether the dispatcher would take it: any index as an int, any number as a float."""
    if typing.get_origin(kind) is list:
        (of,) = typing.get_args(kind)
        return isinstance(value, list | tuple) and all(isinstance(one, of) for one in value)
    if kind is int and hasattr(value, "__index__") and not isinstance(value, Tensor):
        return not isinstance(value, int) or -(2**63) <= value < 2**63
    if kind is float:
        return hasattr(value, "__float__") and not isinstance(value, Tensor)
    return isinstance(value, kind)  # type: ignore[arg-type]


def _arrived(value: object) -> str:
    if value is None or isinstance(value, int | float | str):
        words = repr(value)
        return words if len(words) <= 60 else f"{words[:57]}..."
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(sorted({type(one).__name__ for one in value})) or 'nothing'}"
    return f"a {type(value).__name__}"
