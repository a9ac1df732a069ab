import math

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from sparrow_ext.ops import sample_rows as op
from tests.checks import DTYPES, available_isas, compiled, cpu_isa, strided

INF, NAN = float("inf"), float("nan")
FILTERS = [
    (None, None),
    (1, None),
    (40, None),
    (None, 0.0),
    (None, 0.5),
    (None, 0.95),
    (40, 0.9),
    (10**6, 1.0),
    (0, 0.3),
]


def case(batch: int, nodes: int, vocab: int, dtype=torch.float32, spread: float = 3.0, seed: int = 0):
    """logits, seed, position: any 64 bits in both."""
    g = torch.Generator().manual_seed(seed + 7 * vocab)
    logits = (torch.randn(batch, nodes, vocab, generator=g) * spread).to(dtype)
    ends = torch.iinfo(torch.int64)
    return (
        logits,
        torch.randint(ends.min, ends.max, (batch,), generator=g),
        torch.randint(ends.min, ends.max, (batch, nodes), generator=g),
    )


def filters(batch: int, top_k: int | None, top_p: float | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    k = None if top_k is None else torch.full((batch,), top_k, dtype=torch.int32)
    return k, None if top_p is None else torch.full((batch,), top_p)


def definition(logits, temperature, seed, position, top_k=None, top_p=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's draws, and bool [B, N]: the rows of which they do not hang on the last bits.

    There the two best scores differ by more than 1e-6, and so do top_p and the cumulative probabilities next to it.
    """
    arguments = (logits, temperature, seed, position, top_k, top_p)
    best = op.noisy_scores(*arguments).topk(min(2, logits.shape[-1])).values
    clear = (best[..., 0] - best[..., -1] > 1e-6) | (best.shape[-1] == 1)
    for nudge in (-1e-6, 1e-6) if top_p is not None else ():
        nudged = torch.where(top_p < 1, (top_p + nudge).clamp(0, 1 - 1e-7), top_p)
        same = op.kept(logits, temperature, top_k, nudged) == op.kept(logits, temperature, top_k, top_p)
        clear &= same.all(-1)
    return op.reference(*arguments), clear


def assert_equals_definition(*arguments) -> float:
    """On every instruction set, on every clear row; returns the share of clear rows."""
    want, clear = definition(*arguments)
    for isa in available_isas():
        with cpu_isa(isa):
            assert torch.equal(op.sample_rows(*arguments)[clear], want[clear]), isa
    return clear.double().mean().item()


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


def test_shifted_logits_draw_the_same():
    logits, seed, position = case(2, 20, 500)
    logits = (logits * 8).round() / 8
    one = torch.ones(2)
    assert torch.equal(op.sample_rows(logits, one, seed, position), op.sample_rows(logits + 4096, one, seed, position))


def support(logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None, draws: int) -> set[int]:
    position = torch.arange(draws)[None]
    drawn = op.sample_rows(
        logits.expand(1, draws, -1), torch.tensor([temperature]), torch.tensor([5]), position, *filters(1, top_k, top_p)
    )
    return set(drawn.flatten().tolist())


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize(("top_k", "top_p"), [(1, None), (5, None), (63, None), (None, 0.2), (None, 0.8), (6, 0.7)])
def test_support_equals_transformers(top_k, top_p, isa):
    """Everything the warpers keep is drawn in 20,000 draws (each kept token has > 0.1 %), and nothing else."""
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(9)) / 2
    scores = logits / 0.5
    if top_k is not None:
        scores = TopKLogitsWarper(top_k=top_k)(None, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p=top_p)(None, scores)
    kept = scores[0].isfinite().nonzero().flatten().tolist()
    assert scores.softmax(-1)[0, kept].min() > 1e-3
    with cpu_isa(isa):
        assert support(logits, 0.5, top_k, top_p, 20_000) == set(kept)


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


def test_ties_at_the_cuts():
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 2.0, 1.0, -3.0, 1.0]])
    assert support(logits, 1.0, 3, None, 4000) == {1, 2, 3, 4, 5, 7}  # the third largest is 1: its ties stay
    assert support(logits, 1.0, 2, None, 4000) == {1, 4}
    assert support(logits, 1.0, None, 0.0, 4000) == {1}  # at least one, the lowest id
    # probabilities: 2 x 0.272, 4 x 0.100, 0.037, 0.002
    assert support(logits, 1.0, None, 0.3, 4000) == {1, 4}
    assert support(logits, 1.0, None, 0.6, 4000) == {1, 4, 2}
    assert support(logits, 1.0, None, 0.8, 4000) == {1, 4, 2, 3, 5}
    assert support(torch.zeros(1, 200), 1.0, None, 0.1001, 4000) == set(range(21))
    assert support(torch.zeros(1, 4), 1.0, None, 0.5, 4000) == {0, 1}  # reaches top_p exactly
    assert support(torch.tensor([[0.0, -0.0, -1.0]]), 1.0, 1, None, 400) == {0, 1}  # -0 ties with 0


@pytest.mark.parametrize("top_k", [1, 2, 30, 31, 64, 100, 2000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_cut_at_every_scale(dtype, top_k):
    """Huge, tiny, negative and tied values: the cut is exact whatever the bits."""
    g = torch.Generator().manual_seed(top_k)
    logits = torch.randn(1, 30, 2200, generator=g) * 10 ** torch.linspace(-6, 4, 30)[None, :, None] - 0.3
    logits = logits.clamp(-6e4, 6e4).to(dtype)
    k = torch.tensor([top_k], dtype=torch.int32)
    assert assert_equals_definition(logits, torch.tensor([1e4]), torch.tensor([1]), torch.arange(30)[None], k) > 0.8


@pytest.mark.parametrize("dtype", DTYPES)
def test_temperature_zero_is_argmax(dtype):
    logits, seed, position = case(2, 4, 130, dtype)
    logits[0, 0, 3] = NAN
    logits[0, 1, 77] = logits[0, 1, 5] = INF
    got = op.sample_rows(logits, torch.zeros(2), seed, position, *filters(2, 3, 0.1))
    assert torch.equal(got, logits.argmax(-1))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_special_values(top_k, top_p, dtype, isa):
    logits, seed, position = case(1, 6, 150, dtype)
    logits[0, 0, ::2] = NAN
    logits[0, 1, 3:] = -INF
    logits[0, 2] = NAN  # argmax: 0
    logits[0, 3] = -INF
    logits[0, 3, 9] = NAN  # argmax: 9
    logits[0, 4, 120] = logits[0, 4, 149] = INF
    logits[0, 5] = -INF
    arguments = (logits, torch.tensor([0.7]), seed, position, *filters(1, top_k, top_p))
    with cpu_isa(isa):
        got = op.sample_rows(*arguments)[0].tolist()
    assert got[0] % 2 == 1 and got[1] < 3
    assert got[2:] == [0, 9, 120, 0]
    assert got == op.reference(*arguments)[0].tolist()


@pytest.mark.parametrize("temperature", [1e-30, 1e-5, 1.0, 1e5, 3e38])
def test_extreme_scales(temperature):
    logits, seed, position = case(1, 8, 200)
    logits[0, 4:] *= 1e37
    logits[0, 7, :100] = torch.finfo(torch.float32).max
    logits[0, 7, 100:] = torch.finfo(torch.float32).min
    for filtered in FILTERS:
        assert_equals_definition(logits, torch.tensor([temperature]), seed, position, *filters(1, *filtered))


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
