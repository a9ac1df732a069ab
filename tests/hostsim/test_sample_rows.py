"""Against the CPU operator (which tests/ops/test_sample_rows.py holds to the definition) and the definition itself."""

import pytest
import torch

from sparrow_ext.ops import sample_rows as op
from tests.ops.checks import DTYPES, strided
from tests.ops.sampling_cases import FILTERS, case, definition, filters

INF, NAN = float("inf"), float("nan")


def assert_equals_definition(sim, *arguments) -> float:
    """On every row whose draw does not hang on the last bits; returns the share of those rows."""
    want, clear = definition(*arguments)
    assert torch.equal(sim.ops.sample_rows(*arguments)[clear], want[clear])
    assert torch.equal(op.sample_rows(*arguments)[clear], want[clear])
    return clear.double().mean().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_equals_reference(sim, top_k, top_p, dtype):
    temperature = torch.tensor([0.05, 0.7, 8.0])
    for vocab in (1, 2, 65, 2005):
        logits, seed, position = case(3, 2, vocab, dtype)
        share = assert_equals_definition(sim, logits, temperature, seed, position, *filters(3, top_k, top_p))
        assert share > 0.6, vocab


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.0, 0.01, 3.0, 30.0])
def test_several_chunks_and_pruning(simulator, spread, dtype):
    logits, seed, position = case(1, 2, 9001, dtype, spread)
    simulator.configure(seed=2)
    for filtered in ((None, None), (600, 0.9)):
        assert_equals_definition(simulator, logits, torch.tensor([0.9]), seed, position, *filters(1, *filtered))


def support(sim, logits, top_k, top_p, draws=400):
    expanded = logits[:, None].expand(1, draws, logits.shape[-1])
    position = torch.arange(draws)[None]
    arguments = (expanded, torch.ones(1), torch.tensor([5]), position, *filters(1, top_k, top_p))
    got = sim.ops.sample_rows(*arguments)
    assert torch.equal(got, op.sample_rows(*arguments))
    return set(got.unique().tolist())


def test_ties_at_the_cuts(simulator):
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 2.0, 1.0, -3.0, 1.0]])
    assert support(simulator, logits, 3, None) == {1, 2, 3, 4, 5, 7}  # the third largest is 1: its ties stay
    assert support(simulator, logits, None, 0.0) == {1}  # at least one, the lowest id
    assert support(simulator, logits, None, 0.3) == {1, 4}
    assert support(simulator, logits, None, 0.6) == {1, 4, 2}
    assert support(simulator, logits, None, 0.8) == {1, 4, 2, 3, 5}
    assert support(simulator, torch.zeros(1, 4), None, 0.5) == {0, 1}  # reaches top_p exactly
    assert support(simulator, torch.zeros(1, 200), None, 0.1001) <= set(range(21))
    assert support(simulator, torch.tensor([[0.0, -0.0, -1.0]]), 1, None) == {0, 1}  # -0 ties with 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_across_the_whole_row(sim, dtype):
    """The n-th tie lies in each warp's stretch in turn."""
    logits, seed, position = torch.zeros(1, 1, 6000, dtype=dtype), torch.tensor([3]), torch.tensor([[9]])
    for share in (0.0001, 0.3, 0.77, 0.9999):
        arguments = (logits, torch.ones(1), seed, position, None, torch.tensor([share]))
        assert torch.equal(sim.ops.sample_rows(*arguments), op.sample_rows(*arguments))


@pytest.mark.parametrize("top_k", [1, 30, 100, 600, 2000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_cut_at_every_scale(simulator, dtype, top_k):
    """Huge, tiny, negative and tied values: the cut is exact whatever the bits."""
    g = torch.Generator().manual_seed(top_k)
    logits = torch.randn(1, 10, 2200, generator=g) * 10 ** torch.linspace(-6, 4, 10)[None, :, None] - 0.3
    logits = logits.clamp(-6e4, 6e4).to(dtype)
    k = torch.tensor([top_k], dtype=torch.int32)
    position = torch.arange(10)[None]
    simulator.configure(seed=1)
    assert assert_equals_definition(simulator, logits, torch.tensor([1e4]), torch.tensor([1]), position, k) > 0.6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (40, None), (None, 0.5), (40, 0.9)])
def test_special_values_and_temperature_zero(sim, top_k, top_p, dtype):
    logits, seed, position = case(2, 6, 150, dtype)
    logits[:, 0, ::2] = NAN
    logits[:, 1, 3:] = -INF
    logits[:, 2] = NAN
    logits[:, 3] = -INF
    logits[:, 3, 9] = NAN
    logits[:, 4, 120] = logits[:, 4, 149] = INF
    logits[:, 5] = -INF
    arguments = (logits, torch.tensor([0.7, 0.0]), seed, position, *filters(2, top_k, top_p))
    got = sim.ops.sample_rows(*arguments)
    assert torch.equal(got, op.reference(*arguments)) and torch.equal(got[1], logits[1].argmax(-1))


@pytest.mark.parametrize("temperature", [1e-30, 1e-5, 1e5, 3e38])
def test_extreme_scales(simulator, temperature):
    logits, seed, position = case(1, 8, 200)
    logits[0, 4:] *= 1e37
    logits[0, 7, :100] = torch.finfo(torch.float32).max
    logits[0, 7, 100:] = torch.finfo(torch.float32).min
    for filtered in FILTERS:
        assert_equals_definition(simulator, logits, torch.tensor([temperature]), seed, position, *filters(1, *filtered))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows_and_rows_alone(sim, dtype):
    logits, seed, position = case(3, 5, 130, dtype)
    rest = (torch.tensor([1.0, 0.5, 0.0]), seed, position, *filters(3, 50, 0.9))
    want = sim.ops.sample_rows(logits, *rest)
    for view in (strided(logits), torch.cat([logits[..., :1], logits], -1)[..., 1:]):
        assert torch.equal(sim.ops.sample_rows(view, *rest), want)
    assert torch.equal(want, op.sample_rows(logits, *rest))
    alone = sim.ops.sample_rows(
        logits[1:2, 3:4], rest[0][1:2], seed[1:2], position[1:2, 3:4].contiguous(), rest[3][1:2], rest[4][1:2]
    )
    assert int(alone) == int(want[1, 3])


def test_bad_device_values_are_defined(sim):
    logits, seed, position = case(6, 1, 70)
    none = filters(6, None, None)
    temperature = torch.tensor([-1.0, NAN, 1e-40, 1.0, 1.0, 1.0])
    greedy = logits.argmax(-1)
    got = sim.ops.sample_rows(logits, temperature, seed, position, *none)
    plain = sim.ops.sample_rows(logits, torch.ones(6), seed, position, *none)
    assert torch.equal(got[:3], greedy[:3]) and torch.equal(got[3:], plain[3:])
    bad = (torch.full((6,), -3, dtype=torch.int32), torch.tensor([NAN, NAN, NAN, -1.0, -INF, 2.0]))
    got = sim.ops.sample_rows(logits, torch.ones(6), seed, position, *bad)
    assert torch.equal(got[[0, 1, 2, 5]], plain[[0, 1, 2, 5]]) and torch.equal(got[3:5], greedy[3:5])


def test_empty_and_bad_arguments(simulator):
    for batch, nodes in ((0, 3), (2, 0)):
        logits, seed, position = case(batch, nodes, 9)
        got = simulator.ops.sample_rows(logits, torch.ones(batch), seed, position, None, None)
        assert got.shape == (batch, nodes)
    with pytest.raises(RuntimeError, match="sample_rows: logits must have 3 dimensions"):
        simulator.ops.sample_rows(logits[0], torch.ones(2), seed, position, None, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["one warp", "everywhere", "few"])
def test_survivors_that_fit_their_warp_and_that_do_not(simulator, where, dtype):
    """The values above the cut's bound: all with one warp (it keeps 128), in the whole row, or a handful."""
    simulator.configure(seed=3)
    vocab, each = 16384, 16 // dtype.itemsize
    logits = torch.randn(1, 1, vocab, generator=torch.Generator().manual_seed(0))
    token = torch.arange(vocab)
    high = {"one warp": token // (32 * each) % 16 == 5, "everywhere": token >= 0, "few": token % 1000 == 7}[where]
    logits = torch.where(high, 20 + 0.05 * logits, logits - 20).to(dtype)
    seed, position = torch.tensor([3]), torch.tensor([[9]])
    for top_k, top_p in ((40, None), (None, 0.7), (300, 0.5), (3, 0.9)):
        assert_equals_definition(simulator, logits, torch.tensor([0.9]), seed, position, *filters(1, top_k, top_p))
