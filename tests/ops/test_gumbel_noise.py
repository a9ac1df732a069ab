import pytest
import torch

from sparrow_ext.ops import gumbel_noise as op
from sparrow_ext.ops import sample_rows
from tests.ops.checks import available_isas, compiled, cpu_isa

NEAR = 1e-6  # of sample_rows' noise in float64; its largest value is below 23


def draws(batch, positions):
    """Any 64 bits in both."""
    g, ends = torch.Generator().manual_seed(batch + positions), torch.iinfo(torch.int64)
    return (torch.randint(ends.min, ends.max, shape, generator=g) for shape in ((batch,), (batch, positions)))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("vocab", [1, 2, 3, 7, 63, 64, 65, 1023, 1024, 1025, 40000])
def test_equals_the_definition(vocab, isa):
    seed, position = draws(2, 3)
    id_map = torch.randperm(3 * vocab, generator=torch.Generator().manual_seed(1))[:vocab]
    with cpu_isa(isa):
        whole, some = op.gumbel_noise(seed, position, vocab), op.gumbel_noise(seed, position, vocab, id_map)
    for got, ids in ((whole, None), (some, id_map)):
        want = op.reference(seed, position, vocab, ids)
        assert got.shape == (2, 3, vocab) and got.dtype == torch.float32
        assert float((got - want).abs().max()) < NEAR


@pytest.mark.parametrize("isa", available_isas())
def test_the_ends_of_the_noise(isa):
    """The largest, the smallest and what lies at one half, where 1 - u takes over: among four million draws."""
    position = torch.arange(64)[None]
    with cpu_isa(isa):
        got = op.gumbel_noise(torch.tensor([0]), position, 2**16)
    want = op.reference(torch.tensor([0]), position, 2**16)
    middle = -torch.log(-torch.log(torch.tensor(0.5, dtype=torch.float64)))
    for at in (want.argmax(), want.argmin(), (want - middle).abs().argmin()):
        assert abs(float(got.flatten()[at] - want.flatten()[at])) < NEAR
    assert float(want.max()) > 14 and float(want.min()) < -2.7


@pytest.mark.parametrize("isa", available_isas())
def test_a_column_has_the_same_bits_anywhere(isa):
    """In a row of its own, in a longer one, through a map: one token's noise."""
    seed, position = draws(2, 5)
    with cpu_isa(isa):
        whole = op.gumbel_noise(seed, position, 3001)
        for token in (0, 1, 63, 64, 1024, 3000):
            assert torch.equal(op.gumbel_noise(seed, position, 1, torch.tensor([token])), whole[..., token : token + 1])
        assert torch.equal(op.gumbel_noise(seed, position, 100), whole[..., :100])
        assert torch.equal(op.gumbel_noise(seed[1:], position[1:, 3:4].contiguous(), 3001), whole[1:, 3:4])


def test_it_is_what_sample_rows_draws_with():
    seed, position = draws(3, 40)
    logits = torch.randn(3, 40, 500, generator=torch.Generator().manual_seed(0)) * 3
    temperature = torch.tensor([0.5, 1.0, 2.0])
    drawn = sample_rows.sample_rows(logits, temperature, seed, position)
    sums = logits / temperature[:, None, None] + op.gumbel_noise(seed, position, 500)
    best = sums.topk(2).values
    clear = best[..., 0] - best[..., 1] > 1e-5
    assert torch.equal(sums.argmax(-1)[clear], drawn[clear]) and clear.double().mean() > 0.99


def test_more_threads_give_the_same_bits():
    seed, position = draws(2, 9)
    one, before = op.gumbel_noise(seed, position, 9000), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(op.gumbel_noise(seed, position, 9000), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("batch", "positions"), [(0, 3), (2, 0)])
def test_empty(batch, positions):
    assert op.gumbel_noise(*draws(batch, positions), 7).shape == (batch, positions, 7)


SEED, POSITION = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SEED.int(), POSITION, 5), "seed must be int64, got int32"),
        ((POSITION, POSITION, 5), "seed must have 1 dimensions"),
        ((SEED, POSITION.int(), 5), "position must be int64, got int32"),
        ((SEED[:1], POSITION, 5), r"dimension 0 of position must be 1 \(B\), got shape \[2, 3\]"),
        ((SEED, POSITION.T.contiguous().T, 5), "position must be contiguous"),
        ((SEED, POSITION, 0), r"vocab must lie in \[1, 2147483647\], got 0"),
        ((SEED, POSITION, 5, torch.arange(4)), r"dimension 0 of id_map must be 5 \(vocab\)"),
        ((SEED, POSITION, 5, torch.arange(5).int()), "id_map must be int64"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(RuntimeError, match=f"gumbel_noise: {message}"):
        op.gumbel_noise(*arguments)


def test_opcheck_and_compile():
    seed, position = draws(2, 3)
    torch.library.opcheck(torch.ops.sparrow.gumbel_noise, (seed, position, 9, torch.arange(9)))
    assert torch.equal(compiled(op.gumbel_noise, seed, position, 9), op.gumbel_noise(seed, position, 9))
