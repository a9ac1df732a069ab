"""Muon as torch has it, in float32 on CPUs without instructions for bfloat16."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

import sparrow_ext


class Muon(torch.optim.Muon):
    """torch.optim.Muon (Jordan et al. 2024), adjust_lr_fn "match_rms_adamw".

    torch orthogonalises its updates in bfloat16, for which many CPUs have no instructions, or slow ones: there a step
    of a matrix of 576 x 1536 took longer than all else. On those the same iterations run in float32 here; elsewhere, as
    torch has it. Its state is torch's.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float):
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """See torch.optim.Optimizer.step."""
        devices = {p.device.type for group in self.param_groups for p in group["params"]}
        if devices != {"cpu"} or sparrow_ext.cpu_isa() == "avx512_bf16":  # chosen where bfloat16 is the faster
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"]), alpha=-rate)


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """`matrix` [R, C] with singular values near 1, by Newton-Schulz iterations of the fifth order."""
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
