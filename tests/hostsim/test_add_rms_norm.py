import pytest
import torch

from sparrow_ext.ops import add_rms_norm as op
from tests.ops.checks import DTYPES, assert_close64
from tests.ops.test_add_rms_norm import inputs


def run(sim, x, weight, residual, eps=1e-6):
    total, normed = sim.ops.add_rms_norm(x, residual, weight, eps)
    return normed, total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 8, 64, 65, 192, 2047, 2048, 2056, 5001])
def test_equals_the_definition(sim, width, dtype):
    x, weight, residual = inputs((2, 3, width), dtype, width)
    for more in (residual, None):
        normed, total = run(sim, x, weight, more)
        eager, eager_total = op.eager(x, weight, 1e-6, more)
        wide = None if more is None else more.double()
        assert torch.equal(total, eager_total if more is not None else x[:0].flatten())
        assert_close64(normed, eager, op.reference(x.double(), weight.double(), 1e-6, wide)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_alone_and_rows_that_are_not_aligned(sim, dtype):
    x, weight, residual = inputs((5, 203), dtype)
    together = run(sim, x, weight, residual)
    for m in (0, 4):
        alone = run(sim, x[m : m + 1], weight, residual[m : m + 1])
        assert all(torch.equal(a[0], b[m]) for a, b in zip(alone, together, strict=True))
    wide = torch.cat([x, x], dim=1)[:, 1:204]
    assert torch.equal(run(sim, wide, weight, None)[0], run(sim, wide.contiguous(), weight, None)[0])
    assert torch.equal(run(sim, x.T.contiguous().T, weight, residual)[0], together[0])


def test_empty_and_bad_arguments(simulator):
    for shape in [(0, 5), (2, 0, 5), (3, 0)]:
        assert simulator.ops.add_rms_norm(torch.zeros(shape), None, torch.ones(shape[-1]), 0.0)[1].shape == shape
    with pytest.raises(RuntimeError, match="add_rms_norm: x must be float32"):
        simulator.ops.add_rms_norm(torch.zeros(2, 3, dtype=torch.float64), None, torch.ones(3), 0.0)
