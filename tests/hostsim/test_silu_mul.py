import pytest
import torch

from sparrow_ext.ops import silu_mul as op
from tests.ops.checks import DTYPES, assert_close64
from tests.ops.test_silu_mul import inputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 8, 64, 65, 511, 512, 513, 1024, 2051])
def test_equals_the_definition(sim, width, dtype):
    gate, up = inputs((2, 3, width), dtype, width)
    reference = op.reference(gate.double(), up.double())
    assert_close64(sim.ops.silu_mul(gate, up), op.eager(gate, up), reference)
    joint = torch.cat([up, gate, up], dim=-1)  # one row's parts, as one projection leaves them
    assert torch.equal(sim.ops.silu_mul(joint[..., width : 2 * width], joint[..., 2 * width :]),
                       sim.ops.silu_mul(gate, up))  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(sim, dtype):
    gate = torch.tensor([0.0, -0.0, torch.inf, -1000.0, 1000.0, torch.nan, 1.0] * 3, dtype=dtype)
    up = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, torch.nan] * 3, dtype=dtype)
    got = sim.ops.silu_mul(gate, up).float()
    assert got[:5].abs().tolist() == [0.0, 0.0, torch.inf, 0.0, 1000.0] and bool(got[5:7].isnan().all())


def test_empty_and_bad_arguments(simulator):
    for shape in [(0, 5), (2, 0, 5), (3, 0)]:
        assert simulator.ops.silu_mul(torch.zeros(shape), torch.zeros(shape)).shape == shape
    with pytest.raises(RuntimeError, match="silu_mul: gate must be float32"):
        simulator.ops.silu_mul(torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
