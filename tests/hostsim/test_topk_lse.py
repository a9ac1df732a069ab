import pytest
import torch

from sparrow_ext.ops import topk_lse as op
from tests.ops.checks import DTYPES, assert_close64, strided
from tests.ops.test_topk_lse import INF, logits

NAN = float("nan")


def check(sim, x, k, what="", id_map=None):
    got, want, eager = sim.ops.topk_lse(x, k, id_map, None), op.reference(x.double(), k, id_map), op.eager(x, k, id_map)
    assert torch.equal(got[1], want[1]) and torch.equal(got[1], op.topk_lse(x, k, id_map)[1]), f"{what}: ids"
    assert_close64(got[0], eager[0], want[0], f"{what}: logp")
    assert_close64(got[2], eager[2], want[2], f"{what}: lse")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 31, 33, 65, 4095, 4096, 4097, 9001])
def test_equals_reference(sim, vocab, dtype):
    x = logits(2, vocab, dtype)  # 16-bit logits are full of ties: ids must be the lowest
    for k in {1, min(10, vocab), min(32, vocab)} if vocab < 100 else {10}:
        check(sim, x, k, f"V={vocab} k={k}")


@pytest.mark.parametrize("order", ["ascending", "descending", "constant"])
def test_sorted_and_constant_rows(sim, order):
    x = torch.arange(5000, dtype=torch.float32)[None] * 1e-3
    check(sim, {"ascending": x, "descending": x.flip(-1), "constant": torch.zeros_like(x)}[order], 32, order)


def test_several_tiles_per_block(simulator):
    x = logits(1, 64 * 4096 + 5)  # 33 blocks of two tiles
    x[0, 4096 * 5 + 7] = x[0, 4096 * 2] = 30.0
    simulator.configure(seed=1)
    check(simulator, x, 9)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 100.0, 1e30])
def test_scales(sim, scale):
    check(sim, logits(2, 300, scale=scale), 10, f"{scale}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_batches_and_id_map(sim, dtype):
    x, id_map = logits(6, 130, dtype), torch.randperm(1000)[:130]
    flat = sim.ops.topk_lse(x, 5, id_map, None)
    for view in (strided(x), x.view(2, 3, 130), strided(x.view(2, 3, 130)), torch.cat([x[:, :1], x], 1)[:, 1:]):
        for got, want in zip(sim.ops.topk_lse(view, 5, id_map, None), flat, strict=True):
            assert torch.equal(got.flatten(0, -2 if got.dim() > want.dim() else 0).view_as(want), want)
    for row in (0, 5):
        for got, want in zip(sim.ops.topk_lse(x[row : row + 1], 5, id_map, None), flat, strict=True):
            assert torch.equal(got[0], want[row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [40, 5000])
def test_special_values(sim, vocab, dtype):
    x = logits(8, vocab, dtype)
    x[0, ::3], x[1, 5:], x[2, : vocab - 5], x[3, 7] = -INF, NAN, -INF, NAN
    x[4], x[5] = -INF, NAN
    x[6, vocab - 3] = x[6, 17] = INF
    x[6, 3] = NAN
    x[7] = torch.finfo(dtype).min
    x[7, 20] = torch.finfo(dtype).max
    got, want, cpu = sim.ops.topk_lse(x, 20, None, None), op.reference(x.double(), 20), op.topk_lse(x, 20)
    assert torch.equal(got[1], want[1]) and torch.equal(got[1], cpu[1])
    for value, expected in ((got[0], cpu[0]), (got[2], cpu[2])):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [33, 4095, 4097])
def test_bias(sim, vocab, dtype):
    x, wide = logits(6, vocab, dtype), logits(3, vocab + 5)
    wide[1, vocab // 2 :] = -INF
    bias = wide[:, :vocab]
    got = sim.ops.topk_lse(x.view(3, 2, vocab), 5, None, bias)
    want = sim.ops.topk_lse(x.float().view(3, 2, vocab) + bias[:, None], 5, None, None)
    flat, alone = sim.ops.topk_lse(x, 5, None, bias[:1]), sim.ops.topk_lse(x.float() + bias[:1], 5, None, None)
    for one, other in zip((*got[:2], *flat[:2]), (*want[:2], *alone[:2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[2], want[2], rtol=1e-5, atol=1e-5)


def test_far_offsets(simulator):
    view = torch.empty(2**31 + 4096, dtype=torch.bfloat16).as_strided((2, 300), (2**31 + 100, 1))
    view.copy_(logits(2, 300, torch.bfloat16))
    check(simulator, view, 8)


def test_empty_and_bad_arguments(simulator):
    for shape in [(0, 50), (0, 3, 50), (3, 0, 50)]:
        logp, ids, lse = simulator.ops.topk_lse(torch.empty(shape), 4, None, None)
        assert logp.shape == ids.shape == (*shape[:-1], 4) and lse.shape == shape[:-1]
    with pytest.raises(RuntimeError, match="topk_lse: k must lie in"):
        simulator.ops.topk_lse(torch.zeros(2, 50), 33, None, None)
