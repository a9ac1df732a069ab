import pytest
import torch

from sparrow_ext.ops import lm_head_topk as op
from sparrow_ext.ops import topk_lse as topk
from tests.ops.checks import DTYPES, assert_close64, strided
from tests.ops.test_lm_head_topk import INF, assert_order, inputs

HALVES = [torch.bfloat16, torch.float16]


def check(sim, h, weight, k, what="", id_map=None):
    got = sim.ops.lm_head_topk(h, weight, k, id_map, None)
    eager, want = op.eager(h, weight, k), op.reference(h.double(), weight.double(), k)
    assert_close64(got[0], eager[0], want[0], f"{what}: logp")
    assert_close64(got[2], eager[2], want[2], f"{what}: lse")
    assert_order(got, h, weight, 1e-6 if h.shape[0] <= 64 else 2 * torch.finfo(h.dtype).eps)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 8, 9, 17, 33, 64, 65, 130])
def test_close_to_reference(sim, m, dtype):
    check(sim, *inputs(m, dtype, 72, 150), 8, f"M={m}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "vocab"), [(1, 1), (33, 7), (600, 33), (64, 63), (8, 64), (1032, 65), (40, 300)])
def test_sizes_and_tails(sim, width, vocab, dtype):
    check(sim, *inputs(3, dtype, width, vocab), min(vocab, 32), f"{width} {vocab}")


@pytest.mark.parametrize("dtype", HALVES)
def test_several_tiles_per_block(simulator, dtype):
    """513 tiles: 257 blocks of two, the last with one that is cut short."""
    simulator.configure(seed=1)
    check(simulator, *inputs(3, dtype, 8, 512 * 64 + 5), 10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_ties_take_the_lowest_row(sim, dtype):
    h, weight = inputs(5, dtype, 64, 40)
    weight = weight[torch.arange(320) % 40].contiguous()  # every row 8 times
    best = (h.double() @ weight[:40].double().T).argmax(-1)
    assert torch.equal(sim.ops.lm_head_topk(h, weight, 8, None, None)[1], best[:, None] + 40 * torch.arange(8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_whatever_m(simulator, dtype):
    simulator.configure(seed=2)
    h, weight = inputs(64, dtype, 200, 200)
    full = simulator.ops.lm_head_topk(h, weight, 10, None, None)
    for chosen in (range(64), range(1), range(5), range(9), range(30), range(33), [41]):
        rows = torch.tensor(list(chosen))
        for got, want in zip(simulator.ops.lm_head_topk(h[rows], weight, 10, None, None), full, strict=True):
            assert torch.equal(got, want[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [6, 90])
def test_leading_dimensions_strides_and_id_map(sim, m, dtype):
    h, weight = inputs(m, dtype, 72, 150)
    id_map = torch.randperm(9000)[:150]
    flat = sim.ops.lm_head_topk(h, weight, 5, id_map, None)
    for view in (h.view(2, m // 2, 72), strided(h.view(2, m // 2, 72))):
        for got, want in zip(sim.ops.lm_head_topk(view, weight, 5, id_map, None), flat, strict=True):
            assert torch.equal(got.flatten(0, 1), want)
    if m <= 64:
        for got, want in zip(sim.ops.lm_head_topk(h, strided(weight), 5, id_map, None), flat, strict=True):
            assert torch.equal(got, want)
    assert torch.equal(flat[1], id_map[sim.ops.lm_head_topk(h, weight, 5, None, None)[1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinite_logits_follow_topk_lse(sim, dtype):
    h, weight = inputs(3, dtype, 8, 150)
    weight[10, 0], weight[120, 0], weight[4, 0] = float("nan"), float("nan"), INF
    h[:, 0] = torch.tensor([1.0, -1.0, 1.0])
    h[2, 1] = float("nan")
    got, want = sim.ops.lm_head_topk(h, weight, 6, None, None), topk.reference(h.double() @ weight.double().T, 6)
    assert torch.equal(got[1], want[1])
    assert got[2][0] == INF and got[0][0, 0] == 0 and bool((got[0][0, 1:] == -INF).all())
    assert got[2][1].isfinite() and not {4, 10, 120} & set(got[1][1].tolist())
    assert got[2][2] == -INF and bool((got[0][2] == -INF).all()) and got[1][2].tolist() == list(range(6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 9, 23])
def test_bias(sim, m, dtype):
    h, weight = inputs(3 * m, dtype, 72, 300)
    h, wide = h.view(3, m, 72), torch.randn(3, 305, generator=torch.Generator().manual_seed(0)) * 4
    wide[1, 150:] = -INF
    bias = wide[:, :300]
    got = sim.ops.lm_head_topk(h, weight, 5, None, bias)
    want, eager = op.reference(h.double(), weight.double(), 5, None, bias.double()), op.eager(h, weight, 5, None, bias)
    for i in (0, 2):
        assert_close64(got[i], eager[i], want[i])
    assert int(got[1][1].max()) < 150
    exact = h.double() @ weight.double().T + bias.double()[:, None]
    apart = (exact.gather(-1, got[1]) - exact.topk(5).values).abs().max()
    assert float(apart) <= (1e-6 if 3 * m <= 64 else 2 * torch.finfo(dtype).eps) * float(exact[[0, 2]].abs().max())
    for one, other in zip(sim.ops.lm_head_topk(h[2], weight, 5, None, bias[2:]), got, strict=True):
        if 3 * m <= 64:
            assert torch.equal(one, other[2])


def test_empty_and_bad_arguments(simulator):
    for shape in [(0, 70), (0, 3, 70), (3, 0, 70)]:
        logp, ids, lse = simulator.ops.lm_head_topk(torch.empty(shape), torch.zeros(50, 70), 4, None, None)
        assert logp.shape == ids.shape == (*shape[:-1], 4) and lse.shape == shape[:-1]
    with pytest.raises(RuntimeError, match="lm_head_topk: weight must have the dtype of h"):
        simulator.ops.lm_head_topk(torch.zeros(2, 50), torch.zeros(90, 50).half(), 3, None, None)
