import pytest
import torch

from sparrow_ext.ops import gumbel_noise as op
from tests.ops.test_gumbel_noise import NEAR, draws


@pytest.mark.parametrize("vocab", [1, 2, 5, 63, 64, 65, 511, 512, 513, 3001])
def test_equals_the_definition(sim, vocab):
    seed, position = draws(2, 3)
    id_map = torch.randperm(3 * vocab, generator=torch.Generator().manual_seed(1))[:vocab]
    for ids in (None, id_map):
        got = sim.ops.gumbel_noise(seed, position, vocab, ids)
        assert float((got - op.reference(seed, position, vocab, ids)).abs().max()) < NEAR


def test_the_ends_of_the_noise(simulator):
    position = torch.arange(16)[None]
    got = simulator.ops.gumbel_noise(torch.tensor([0]), position, 2**14, None)
    want = op.reference(torch.tensor([0]), position, 2**14)
    assert float((got - want).abs().max()) < NEAR and float(want.max()) > 11 and float(want.min()) < -2.4


def test_a_column_has_the_same_bits_anywhere(sim):
    seed, position = draws(2, 2)
    whole = sim.ops.gumbel_noise(seed, position, 700, None)
    assert torch.equal(sim.ops.gumbel_noise(seed, position, 65, None), whole[..., :65])
    assert torch.equal(sim.ops.gumbel_noise(seed, position, 3, torch.tensor([699, 0, 64])), whole[..., [699, 0, 64]])


def test_empty_and_bad_arguments(simulator):
    for batch, positions in ((0, 3), (2, 0)):
        assert simulator.ops.gumbel_noise(*draws(batch, positions), 7, None).shape == (batch, positions, 7)
    with pytest.raises(RuntimeError, match="gumbel_noise: vocab must lie in"):
        simulator.ops.gumbel_noise(*draws(2, 3), 0, None)
