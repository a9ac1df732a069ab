import math

import pytest
import torch

from sparrow_ext.ops import sample_rows as op
from tests.ops.checks import DTYPES, available_isas, compiled, cpu_isa, strided
from tests.ops.sampling_cases import FILTERS, assert_equals_definition, case, filters

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    got = op.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert [int(w) for w in got] == words


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_equals_reference(top_k, top_p, dtype):
    temperature = torch.tensor([0.05, 0.7, 8.0])
    for vocab in (1, 2, 63, 64, 65, 129, 2005):
        logits, seed, position = case(3, 4, vocab, dtype)
        share = assert_equals_definition(logits, temperature, seed, position, *filters(3, top_k, top_p))
        assert share > 0.8, vocab


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 30.0])
def test_pruning_loses_nothing(spread):
    """Flat and peaked rows at a real vocabulary's size, against every score written out."""
    logits, seed, position = case(2, 1, 152064, torch.bfloat16, spread)
    assert assert_equals_definition(logits, torch.tensor([1.0, 0.6]), seed, position) > 0


@pytest.mark.parametrize("isa", available_isas())
def test_chi_square_against_softmax(isa):
    """200,000 draws. The seeds are fixed, so the result is too; for random seeds each limit fails once in 10^4."""
    draws, vocab = 200_000, 37
    logits = torch.randn(1, 1, vocab, generator=torch.Generator().manual_seed(3)) * 1.5
    expanded = logits.expand(1, draws, vocab)
    position = torch.arange(draws)[None]
    for filtered in ((None, None), (12, 0.9)):
        arguments = (torch.tensor([0.8]), torch.tensor([11]), position, *filters(1, *filtered))
        with cpu_isa(isa):
            counts = op.sample_rows(expanded, *arguments).flatten().bincount(minlength=vocab).double()
        keep = op.kept(logits, arguments[0], *filters(1, *filtered))
        expected = draws * torch.where(keep, logits.double() / 0.8, -INF).softmax(-1).flatten()
        assert bool((counts[expected == 0] == 0).all())
        inside = expected > 0
        assert expected[inside].min() > 5
        statistic = float(((counts - expected)[inside] ** 2 / expected[inside]).sum())
        freedom = int(inside.sum()) - 1
        # Wilson-Hilferty: the chi-square quantile at 1 - 1e-4 (normal quantile 3.719)
        limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
        assert statistic < limit


def test_draws_differ_between_seeds_positions_and_tokens():
    position = torch.arange(500)[None]
    one, other = op.gumbel(torch.tensor([1]), position, 64), op.gumbel(torch.tensor([2]), position, 64)
    both = torch.cat([one, other]).flatten()
    assert both.unique().numel() == both.numel()
    centred = both - 0.5772156649  # mean of the Gumbel distribution; its variance is pi^2 / 6
    assert abs(float(centred.mean())) < 0.02 and abs(float((centred**2).mean()) - math.pi**2 / 6) < 0.06


def test_noise_does_not_depend_on_the_slot():
    logits, seed, position = case(3, 40, 300)
    temperature, (k, p) = torch.tensor([0.9, 0.0, 1.3]), filters(3, 100, 0.97)
    whole = op.sample_rows(logits, temperature, seed, position, k, p)
    for b in range(3):
        for n in (0, 1, 17, 39):
            alone = op.sample_rows(
                logits[b : b + 1, n : n + 1],
                temperature[b : b + 1],
                seed[b : b + 1],
                position[b : b + 1, n : n + 1],
                k[b : b + 1],
                p[b : b + 1],
            )
            assert int(alone) == int(whole[b, n])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = op.sample_rows(logits[:, order], temperature, seed, position[:, order].contiguous(), k, p)
    assert torch.equal(shuffled, whole[:, order])
    # A longer vocabulary of impossible tokens changes nothing either.
    wide = torch.cat([logits, torch.full((3, 40, 77), -INF)], -1)
    assert torch.equal(op.sample_rows(wide, temperature, seed, position, k, p), whole)


def test_draws_do_not_depend_on_the_threads():
    logits, seed, position = case(2, 30, 5003)
    arguments = (logits, torch.tensor([0.9, 1.3]), seed, position, *filters(2, 100, 0.97))
    one, before = op.sample_rows(*arguments), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(op.sample_rows(*arguments), one)
    finally:
        torch.set_num_threads(before)


def test_shifted_logits_draw_the_same():
    logits, seed, position = case(2, 20, 500)
    logits = (logits * 8).round() / 8
    one = torch.ones(2)
    assert torch.equal(op.sample_rows(logits, one, seed, position), op.sample_rows(logits + 4096, one, seed, position))


@pytest.mark.parametrize("isa", available_isas())
def test_equal_scores_go_to_the_lowest_id(isa):
    seed, position, vocab = torch.tensor([3]), torch.tensor([[1]]), 152064
    noise, order = op.gumbel(seed, position, vocab).flatten().sort(stable=True)
    twins = (noise[1:] == noise[:-1]).nonzero().flatten()  # 152064 words of 32 bits: some pair is expected to agree
    assert twins.numel() > 0
    for at in twins.tolist():
        logits = torch.full((1, 1, vocab), -INF)
        logits[..., order[at : at + 2]] = 0.5
        with cpu_isa(isa):
            assert int(op.sample_rows(logits, torch.ones(1), seed, position)) == int(order[at])


@pytest.mark.parametrize("dtype", DTYPES)
def test_temperature_zero_is_argmax(dtype):
    logits, seed, position = case(2, 4, 130, dtype)
    logits[0, 0, 3] = NAN
    logits[0, 1, 77] = logits[0, 1, 5] = INF
    got = op.sample_rows(logits, torch.zeros(2), seed, position, *filters(2, 3, 0.1))
    assert torch.equal(got, logits.argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows(dtype):
    logits, seed, position = case(3, 5, 130, dtype)
    rest = (torch.ones(3), seed, position, *filters(3, 50, 0.9))
    want = op.sample_rows(logits, *rest)
    assert torch.equal(op.sample_rows(strided(logits), *rest), want)
    swapped = logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(op.sample_rows(swapped, *rest), want)


def test_offsets_beyond_int32():
    stride = 2**31 + 64
    rows = torch.empty(stride + 70, dtype=torch.bfloat16).as_strided((1, 2, 70), (stride, stride, 1))
    logits, seed, position = case(1, 2, 70, torch.bfloat16)
    rows.copy_(logits)
    one = torch.ones(1)
    assert torch.equal(op.sample_rows(rows, one, seed, position), op.sample_rows(logits, one, seed, position))


@pytest.mark.parametrize(("batch", "nodes"), [(0, 3), (2, 0)])
def test_empty(batch, nodes):
    logits, seed, position = case(batch, nodes, 9)
    assert op.sample_rows(logits, torch.ones(batch), seed, position).shape == (batch, nodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 8).double()}, "sample_rows: logits must be float32 or bfloat16 or float16"),
        ({"logits": torch.zeros(3, 8)}, r"logits must have 3 dimensions, got shape \[3, 8\]"),
        ({"logits": torch.zeros(2, 3, 0)}, r"a vocabulary in \[1, 2\^31\)"),
        ({"logits": torch.zeros(2, 8, 3).transpose(1, 2)}, "logits must be dense in its last dimension"),
        ({"temperature": torch.ones(3)}, r"dimension 0 of temperature must be 2 \(B\)"),
        ({"temperature": torch.ones(2).double()}, "temperature must be float32, got float64"),
        ({"temperature": torch.tensor([1.0, -0.5])}, r"temperature\[1\] must be 0 \(argmax\) or finite"),
        ({"temperature": torch.tensor([NAN, 1.0])}, r"temperature\[0\] must be"),
        ({"temperature": torch.tensor([1.0, INF])}, r"temperature\[1\] must be"),
        ({"temperature": torch.tensor([1.0, 1e-40])}, r"temperature\[1\] must be"),
        ({"seed": torch.zeros(2, dtype=torch.int32)}, "seed must be int64, got int32"),
        ({"position": torch.zeros(2, 4, dtype=torch.int64)}, r"dimension 1 of position must be 3 \(N\)"),
        ({"position": torch.zeros(3, 2, dtype=torch.int64).t()}, "position must be contiguous"),
        ({"top_k": torch.ones(2, dtype=torch.int64)}, "top_k must be int32, got int64"),
        ({"top_k": torch.tensor([1, -1], dtype=torch.int32)}, r"top_k\[1\] must be 0 \(off\) or positive, got -1"),
        ({"top_p": torch.ones(1)}, r"dimension 0 of top_p must be 2 \(B\)"),
        ({"top_p": torch.tensor([0.5, 1.5])}, r"top_p\[1\] must lie in \[0, 1\] \(1 = off\), got 1.5"),
        ({"top_p": torch.tensor([NAN, 0.5])}, r"top_p\[0\] must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments_raise(change, message):
    arguments = {
        "logits": torch.zeros(2, 3, 8),
        "temperature": torch.ones(2),
        "seed": torch.zeros(2, dtype=torch.int64),
        "position": torch.zeros(2, 3, dtype=torch.int64),
    } | change
    with pytest.raises(RuntimeError, match=message):
        op.sample_rows(**arguments)


def test_opcheck_and_compile():
    logits, seed, position = case(2, 3, 70)
    for filtered in ((None, None), (20, 0.9)):
        arguments = (logits, torch.ones(2), seed, position, *filters(2, *filtered))
        torch.library.opcheck(torch.ops.sparrow.sample_rows, arguments)
        assert torch.equal(compiled(op.sample_rows, *arguments), op.sample_rows(*arguments))


def test_eager_draws_from_the_same_distribution():
    """The bench compares against it, so it must do the same work: the same support, and close frequencies."""
    logits = torch.randn(1, 1, 30, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    arguments = (torch.tensor([0.8]), torch.tensor([1]), torch.zeros(1, 50_000, dtype=torch.int64), *filters(1, 9, 0.9))
    counts = op.eager(logits.expand(1, 50_000, 30), *arguments).flatten().bincount(minlength=30) / 50_000
    keep = op.kept(logits, arguments[0], *filters(1, 9, 0.9))
    want = torch.where(keep, logits / 0.8, -INF).softmax(-1).flatten()
    assert float((counts - want).abs().max()) < 0.01
