import pytest
import torch

from sparrow_ext.ops import rope_append as op
from tests.ops.attention_cases import angles, caches, ints
from tests.ops.checks import DTYPES, assert_close64, available_isas, compiled, cpu_isa, strided

# B, N, H, K, D
SHAPES = [
    (1, 1, 7, 1, 128),
    (3, 9, 4, 2, 64),
    (2, 65, 3, 3, 24),
    (1, 128, 2, 1, 80),
    (1, 3, 2, 2, 2),
    (1, 300, 1, 1, 16),
]


def case(shape, dtype, rows=None):
    b, n, h, k, d = shape
    rows = rows or n + 5
    generator = torch.Generator().manual_seed(0)
    q, key, value = (strided(torch.randn(b, n, heads, d, generator=generator).to(dtype)) for heads in (h, k, k))
    slots = torch.stack([torch.randperm(rows, generator=generator)[:n] for _ in range(b)]).int()
    slots[:, n // 2 :: 3] = -1
    return q, key, value, angles(b, n, d), slots, *caches(b, rows, k, d, dtype)


def copies(args, dtype=None):
    return [x.clone() if dtype is None or not x.is_floating_point() else x.to(dtype, copy=True) for x in args]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype, isa):
    args = case(shape, dtype)
    before, same, exact = copies(args), copies(args), copies(args, torch.float64)
    op.reference(*same)
    op.reference(*exact)
    with cpu_isa(isa):
        op.rope_append(*args)
    for i, what in [(0, "q"), (5, "k_cache"), (6, "v_cache")]:
        assert_close64(args[i], same[i], exact[i], what)
        if dtype == torch.float32:
            assert torch.equal(args[i], same[i]), f"{what}: float32 rope equals PyTorch's bit for bit"
    for i in (1, 2, 3, 4):
        assert torch.equal(args[i], before[i])
    for b, row in enumerate(args[4].tolist()):
        kept = [r for r in range(args[5].shape[1]) if r not in row]
        for i in (5, 6):
            assert torch.equal(args[i][b, kept], before[i][b, kept])


def test_eager_equals_reference():
    q, k, v, cos_sin, slots, kc, vc = case((2, 6, 4, 2, 16), torch.float32)
    slots.copy_(torch.arange(3, 9).expand(2, 6))
    a, b = copies((q, kc, vc)), copies((q, kc, vc))
    a[0] = op.eager(a[0], k, v, cos_sin, 3, a[1], a[2])
    op.reference(b[0], k, v, cos_sin, slots, b[1], b[2])
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_their_company(dtype):
    args = case((3, 65, 4, 2, 24), dtype)
    alone = copies(args)
    op.rope_append(*args)
    for b in range(3):
        op.rope_append(*(x[b : b + 1] for x in alone))
    for i in (0, 5, 6):
        assert torch.equal(args[i], alone[i])


def test_of_two_nodes_with_one_slot_the_later_stays():
    q, k, v, cos_sin, slots, kc, vc = case((1, 3, 2, 1, 16), torch.float32)
    slots.copy_(ints(2, 4, 2))
    op.rope_append(q, k, v, cos_sin, slots, kc, vc)
    assert torch.equal(vc[0, 2], v[0, 2]) and torch.equal(vc[0, 4], v[0, 1])


def test_strides_beyond_int32():
    step = 2**30 + 32
    buffer = torch.empty(2 * step + 64, dtype=torch.bfloat16)  # hardly touched
    keys, values = (buffer.as_strided((1, 3, 1, 16), (0, step, 16, 1), at) for at in (0, 32))
    q, k, v, cos_sin, _, _, _ = case((1, 1, 2, 1, 16), torch.bfloat16)
    for cache in (keys, values):
        cache.zero_()
    op.rope_append(q, k, v, cos_sin, ints(2)[None], keys, values)
    assert torch.equal(values[0, 2], v[0, 0]) and torch.equal(keys[0, 2], op.rope(k.float(), cos_sin)[0, 0].bfloat16())
    assert bool((keys[0, :2] == 0).all()) and bool((values[0, :2] == 0).all())


@pytest.mark.parametrize(("b", "n"), [(0, 4), (2, 0)])
def test_empty(b, n):
    args = torch.zeros(b, n, 4, 16), torch.zeros(b, n, 2, 16), torch.zeros(b, n, 2, 16), torch.zeros(b, n, 16)
    op.rope_append(*args, torch.zeros(b, n, dtype=torch.int32), torch.zeros(b, 8, 2, 16), torch.zeros(b, 8, 2, 16))


BAD = [
    ({"q": torch.zeros(1, 3, 4, 16).double()}, "q must be float32 or bfloat16 or float16"),
    ({"q": torch.zeros(1, 3, 64)}, "q must have 4 dimensions"),
    ({"q": torch.zeros(1, 3, 4, 15)}, "head_dim must be even, got 15"),
    ({"q": torch.zeros(1, 3, 16, 4).transpose(2, 3)}, "q must be dense in its last dimension"),
    ({"k": torch.zeros(1, 3, 2, 16).half()}, "k must have the dtype of q"),
    ({"k": torch.zeros(1, 2, 2, 16)}, "dimension 1 of k must be 3"),
    ({"v": torch.zeros(1, 3, 1, 16)}, "dimension 2 of v must be 2"),
    ({"v": torch.zeros(1, 3, 16, 2).transpose(2, 3)}, "v must be dense in its last dimension"),
    ({"cos_sin": torch.zeros(1, 3, 16).half()}, "cos_sin must be float32, got float16"),
    ({"cos_sin": torch.zeros(1, 3, 8)}, "dimension 2 of cos_sin must be 16"),
    ({"cos_sin": torch.zeros(1, 3, 32)[..., ::2]}, "cos_sin must be contiguous"),
    ({"slots": torch.zeros(1, 3, dtype=torch.int64)}, "slots must be int32, got int64"),
    ({"slots": ints(0, 1, 8)[None]}, r"slots\[0\]\[2\] must lie in \[-1, Smax = 8\), got 8"),
    ({"slots": ints(0, -2, 1)[None]}, r"slots\[0\]\[1\] must lie in \[-1, Smax = 8\), got -2"),
    ({"k_cache": torch.zeros(1, 8, 2, 16).half()}, "k_cache must have the dtype of q"),
    ({"k_cache": torch.zeros(1, 8, 4, 16)}, "dimension 2 of k_cache must be 2"),
    ({"v_cache": torch.zeros(1, 9, 2, 16)}, "dimension 1 of v_cache must be 8"),
    ({"v_cache": torch.zeros(1, 8, 16, 2).transpose(2, 3)}, "v_cache must be dense in its last dimension"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_raise(change, message):
    good = {
        "q": torch.ones(1, 3, 4, 16),
        "k": torch.ones(1, 3, 2, 16),
        "v": torch.ones(1, 3, 2, 16),
        "cos_sin": torch.ones(1, 3, 16),
        "slots": ints(0, 1, -1)[None],
        "k_cache": torch.zeros(1, 8, 2, 16),
        "v_cache": torch.zeros(1, 8, 2, 16),
    }
    args = good | change
    with pytest.raises(RuntimeError, match=f"rope_append: .*{message}"):
        op.rope_append(**args)
    assert not bool(args["k_cache"].any()) and not bool(args["v_cache"].any())
    op.rope_append(**good)


def test_opcheck_and_compile():
    args = case((2, 5, 4, 2, 16), torch.float32)
    torch.library.opcheck(torch.ops.sparrow.rope_append, copies(args))
    a, b = copies(args), copies(args)
    compiled(op.rope_append, *a)
    op.rope_append(*b)
    assert all(torch.equal(a[i], b[i]) for i in (0, 5, 6))
