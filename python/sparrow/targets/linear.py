"""Verification's matrix products: a model's plain linear layers, replaced by `skinny_linear`."""

import contextlib
import functools
from collections.abc import Iterable, Iterator

import torch
from torch import nn

import sparrow_ext

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def untouched(module: nn.Module) -> bool:
    """True where a call of the module runs its class' forward, and no hook but transformers' own recorders.

    These stay for good on the layers of a model that was once asked for all its hidden states; they do nothing in a
    pass that does not ask.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    recorders = all(getattr(hook, "__module__", "") == "transformers.utils.output_capturing" for hook in hooks)
    return recorders and "forward" not in vars(module)


def is_plain(module: nn.Module, device: torch.device) -> bool:
    """True where the module computes F.linear of its parameters on `device` and nothing else.

    Subclasses (quantised, LoRA, parametrised layers), layers with hooks or a forward of their own (offloading), weights
    that are no plain tensors and unsupported dtypes are not plain. Under autocast no layer is: F.linear would cast.
    """
    if type(module) is not nn.Linear or not untouched(module) or torch.is_autocast_enabled(device.type):
        return False
    weight, bias = module.weight, module.bias
    return (
        type(weight) is nn.Parameter
        and weight.dtype in DTYPES
        and weight.device == device
        and (weight.shape[1] <= 1 or weight.stride(1) == 1)
        and (bias is None or (type(bias) is nn.Parameter and bias.dtype == weight.dtype and bias.device == device))
    )


@contextlib.contextmanager
def skinny_linear_in(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """The plain ones of `modules` compute with skinny_linear inside; their forward is restored in any case.

    A row of a product then has the same bits whatever rows are computed with it, so a node of a tree gets the numbers
    that plain decoding through the same loop gets. The rule looks at what a layer is, never at sizes: one path for all
    row counts is what makes the bits equal. `bench/bench_skinny_linear.py` times it against F.linear.
    """
    layers = [module for module in modules if isinstance(module, nn.Linear) and is_plain(module, device)]
    try:
        for layer in layers:
            vars(layer)["forward"] = functools.partial(sparrow_ext.skinny_linear, weight=layer.weight, bias=layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
