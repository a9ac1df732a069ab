"""top-k and top-p of sample_rows: transformers' support, exact cuts, ties, special values, extreme scales."""

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from sparrow_ext.ops import sample_rows as op
from tests.ops.checks import DTYPES, available_isas, cpu_isa
from tests.ops.sampling_cases import FILTERS, assert_equals_definition, case, filters

INF, NAN = float("inf"), float("nan")


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
