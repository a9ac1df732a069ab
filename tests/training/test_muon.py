"""Muon on the CPU: torch's own, but for its rounding to bfloat16 where the CPU is slow at that."""

import pytest
import torch

import sparrow_ext
from sparrow.training.muon import Muon, orthogonal


@pytest.fixture(params=[False, True], ids=["float32", "native"])
def native(request, monkeypatch):
    """Whether the CPU multiplies bfloat16 natively."""
    monkeypatch.setattr(sparrow_ext, "cpu_isa", lambda: "avx512_bf16" if request.param else "avx2")
    return request.param


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16), (1, 7)])
def test_updates_are_torchs(shape, native):
    g = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(shape, generator=g), torch.randn(4, *shape, generator=g)
    weights = []
    for kind, more in ((Muon, {}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})):
        weight = torch.nn.Parameter(start.clone())
        optimiser = kind([weight], lr=0.1, weight_decay=0.1, **more)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimiser.step()
        weights.append(weight.detach())
        assert set(optimiser.state[weight]) == {"momentum_buffer"}  # checkpoints of either go on in the other
    moved = (weights[1] - start).abs().max()
    torch.testing.assert_close(weights[0], weights[1], atol=0.02 * float(moved), rtol=0)
    assert moved > 0.05 and torch.equal(weights[0], weights[1]) == native


def test_no_gradient_no_step(native):
    weight = torch.nn.Parameter(torch.ones(2, 3))
    Muon([weight], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(weight, torch.ones(2, 3))


def test_singular_values_come_near_one():
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(1)) * 1e-4
    values = torch.linalg.svdvals(orthogonal(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
