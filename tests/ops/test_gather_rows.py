import pytest
import torch

from sparrow_ext.ops import gather_rows as op
from tests.ops.checks import DTYPES, available_isas, compiled, cpu_isa, poison

INT = torch.int32


def inputs(batch, rows, count, trailing, dtype=torch.float32, seed=0, *, stride=False):
    generator = torch.Generator().manual_seed(seed)
    src = torch.randn(batch, rows, *trailing, generator=generator).mul(50).to(dtype)
    dst = poison(torch.empty(batch, count + 5, *trailing, dtype=dtype))
    if stride:  # batch and row strides are free, rows stay dense
        big = poison(torch.empty(batch, 2 * rows + 1, *trailing, dtype=dtype))[:, 1::2]
        big.copy_(src)
        src, dst = big, poison(torch.empty(batch, 3 * (count + 5), *trailing, dtype=dtype))[:, ::3]
    index = poison(torch.empty(batch, count, dtype=INT))
    counts = torch.randint(0, count + 1 if rows else 1, (batch,), generator=generator, dtype=INT)
    for b, n in enumerate(counts.tolist()):
        index[b, :n] = torch.randint(0, max(rows, 1), (n,), generator=generator)
    start = torch.randint(0, 6, (batch,), generator=generator, dtype=INT)
    return [src, index, counts, dst, start]


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("trailing", [(), (1,), (3,), (2, 64)])
def test_equals_reference(trailing, dtype, isa):
    for seed, (rows, count) in enumerate([(1, 1), (64, 63), (65, 130), (200, 64), (0, 3), (5, 0)]):
        for stride in (False, True):
            arguments = inputs(3, rows, count, trailing, dtype, seed, stride=stride)
            want = arguments[3].clone()
            op.reference(*arguments[:3], want, arguments[4])
            eager = arguments[3].clone()
            op.eager(*arguments[:3], eager, arguments[4])
            with cpu_isa(isa):
                op.gather_rows(*arguments)
            assert same_bits(arguments[3], want) and same_bits(eager, want)


def test_rows_are_bit_equal_to_batch_of_one():
    arguments = inputs(3, 40, 31, (16,), torch.bfloat16, seed=2)
    alone = [a.clone() for a in arguments]
    op.gather_rows(*arguments)
    for b in range(3):
        one = [a[b : b + 1].clone() for a in alone]
        op.gather_rows(*one)
        assert same_bits(one[3], arguments[3][b : b + 1])


def test_same_result_on_any_number_of_threads():
    arguments = inputs(3, 4000, 3000, (256,), seed=4)
    arguments[2][:] = torch.tensor([3000, 0, 2999])
    arguments[1].clamp_(min=0)
    want = arguments[3].clone()
    op.eager(*arguments[:3], want, arguments[4])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        op.gather_rows(*arguments)
    finally:
        torch.set_num_threads(before)
    assert same_bits(arguments[3], want)


def test_offsets_beyond_2_to_the_31_elements():
    rows, dim = 2**24 + 70, 128  # 2**31 elements and more each, hardly touched
    src = torch.empty(1, rows, dim, dtype=torch.uint8)
    dst = torch.empty(1, rows, dim, dtype=torch.uint8)
    src[0, -64:] = torch.arange(64, dtype=torch.uint8)[:, None]
    dst[0, -10:] = 200
    index = torch.tensor([[rows - 1, rows - 64, rows - 5]], dtype=INT)
    op.gather_rows(src, index, torch.tensor([3], dtype=INT), dst, torch.tensor([rows - 4], dtype=INT))
    want = torch.tensor([200] * 6 + [63, 0, 59] + [200], dtype=torch.uint8)
    assert bool((dst[0, -10:] == want[:, None]).all())


def test_empty():
    for shape in [(0, 4, 8), (2, 4, 0), (2, 0, 8)]:
        dst = torch.ones(shape[0], 3, shape[2])
        count = torch.zeros(shape[0], dtype=INT)
        op.gather_rows(torch.ones(shape), torch.zeros(shape[0], 2, dtype=INT), count, dst, count)
        assert bool((dst == 1).all())


def ints(*values):
    return torch.tensor(values, dtype=INT)


BUFFER = torch.zeros(1, 20, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.zeros(1, 3)}, "index must be int32, got float32"),
        ({"count": torch.zeros(1, dtype=torch.int64)}, "count must be int32, got int64"),
        ({"dst_start": torch.zeros(1, dtype=torch.int64)}, "dst_start must be int32, got int64"),
        ({"dst": torch.zeros(1, 7, 6, dtype=torch.float16)}, "dst must have the dtype of src"),
        ({"src": torch.zeros(5)}, "src must have at least 2 dimensions"),
        ({"dst": torch.zeros(1, 7)}, "dst must have 3 dimensions"),
        ({"dst": torch.zeros(1, 7, 5)}, "dimension 2 of dst must be 6"),
        ({"dst": torch.zeros(2, 7, 6)}, "dimension 0 of dst must be 1"),
        ({"index": ints(0, 1, 2)}, "index must have 2 dimensions"),
        ({"count": ints(1, 1)}, r"dimension 0 of count must be 1 \(B of src\)"),
        ({"src": torch.zeros(1, 5, 12)[..., ::2]}, "src must be dense behind its first two dimensions"),
        ({"dst": torch.zeros(1, 6, 7).transpose(1, 2)}, "dst must be dense behind its first two dimensions"),
        ({"dst": torch.zeros(1, 1, 6).expand(-1, 7, -1)}, "dst is written: it must not hold an element twice"),
        ({"src": BUFFER[:, :5], "dst": BUFFER[:, 4:11]}, "dst is written: it must not overlap src"),
        ({"index": ints([0, 9, 1, 9, 2, 9])[:, ::2]}, "index must be contiguous"),
        ({"count": ints(4)}, r"count\[0\] must lie in \[0, 3\], got 4"),
        ({"count": ints(-1)}, r"count\[0\] must lie in \[0, 3\], got -1"),
        ({"dst_start": ints(5)}, r"dst_start\[0\] must lie in .* = \[0, 4\], got 5"),
        ({"dst_start": ints(-1)}, r"dst_start\[0\] must lie in .* got -1"),
        ({"index": ints([0, 5, 2])}, r"index\[0\]\[1\] must lie in \[0, 5\), got 5"),
        ({"index": ints([0, 1, -1])}, r"index\[0\]\[2\] must lie in \[0, 5\), got -1"),
    ],
)
def test_bad_arguments_raise_and_change_nothing(change, message):
    arguments = {
        "src": torch.ones(1, 5, 6),
        "index": ints([0, 1, 2]),
        "count": ints(3),
        "dst": torch.zeros(1, 7, 6),
        "dst_start": ints(0),
    } | change
    with pytest.raises(RuntimeError, match="gather_rows: .*" + message):
        op.gather_rows(**arguments)
    assert bool((arguments["dst"] == 0).all())


def test_opcheck_and_compile():
    arguments = inputs(2, 9, 7, (4,), seed=1)
    torch.library.opcheck(torch.ops.sparrow.gather_rows, tuple(a.clone() for a in arguments))
    want = arguments[3].clone()
    op.reference(*arguments[:3], want, arguments[4])
    compiled(op.gather_rows, *arguments)
    assert same_bits(arguments[3], want)
