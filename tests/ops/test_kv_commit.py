import math

import pytest
import torch

from sparrow_ext.ops import kv_commit as op
from tests.ops.checks import DTYPES, available_isas, compiled, cpu_isa, poison, strided

INT = torch.int32


def random_paths(batch: int, limit: int, capacity: int, generator: torch.Generator, *, root: bool = True):
    """Strictly increasing, half of them starting at node 0; what lies beyond num_path is poison."""
    path = poison(torch.empty(batch, capacity, dtype=INT))
    num_path = torch.empty(batch, dtype=INT)
    for b in range(batch):
        count = int(torch.randint(0, min(limit, capacity) + 1, (), generator=generator))
        nodes = torch.randperm(limit, generator=generator)[:count].sort().values
        if count and root:
            nodes[0] = 0
        path[b, :count] = nodes.to(INT)
        num_path[b] = count
    return path, num_path


def cache(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
    """[L, 2, B, S, K, D] in one of the layouts a caller may hold."""
    values = torch.arange(math.prod(shape)).view(shape)  # distinct in fp32; in 16 bits rows still differ
    values = (values % 2039 + values // 2039).to(dtype)
    if layout == "heads first":  # the buffer is [L, 2, B, K, S, D]
        return values.transpose(3, 4).contiguous().transpose(3, 4)
    if layout == "strided":
        return strided(values)
    return values


def inputs(batch, nodes, dtype, layout, seed, *, layers=2, rows=None, heads=2, dim=8, capacity=None):
    generator = torch.Generator().manual_seed(seed)
    rows = rows or nodes + 20
    kv = cache((layers, 2, batch, rows, heads, dim), dtype, layout)
    path, num_path = random_paths(batch, nodes, capacity or nodes, generator, root=seed % 2 == 0)
    base = torch.randint(0, rows - nodes + 1, (batch,), generator=generator, dtype=INT)
    new_lens = poison(torch.empty(batch, dtype=INT))
    return [kv, path, num_path, base, new_lens]


def clones(arguments):
    return [a.clone() for a in arguments]


def assert_same(got, want):
    """Bit for bit, NaN poison included: rows that must not change are compared, too."""
    for ours, expected in zip(got, want, strict=True):
        assert torch.equal(ours.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("layout", ["dense", "heads first", "strided"])
@pytest.mark.parametrize("nodes", [1, 2, 15, 16, 17, 63, 64, 65, 128])
def test_equals_reference(nodes, layout, isa):
    for seed in range(4):
        dtype = DTYPES[(seed + nodes) % 3]
        arguments = inputs(3, nodes, dtype, layout, seed)
        want = clones(arguments)
        op.reference(*want)
        for function in (op.kv_commit, op.eager, op.eager_stacked):
            got = [cache(tuple(arguments[0].shape), dtype, layout), *clones(arguments[1:])]
            with cpu_isa(isa):
                function(*got)
            assert_same(got, want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, *DTYPES])
def test_any_dtype_and_odd_row_bytes(dtype):
    arguments = inputs(2, 20, torch.float32, "dense", 1, heads=1, dim=7)
    arguments[0] = arguments[0].to(dtype)
    want = clones(arguments)
    op.reference(*want)
    op.kv_commit(*arguments)
    assert_same(arguments, want)


def test_in_place_aliasing_of_random_paths():
    """Sources and targets overlap: a copy in any order but ascending would read rows already overwritten."""
    for seed in range(200):
        arguments = inputs(1, 128, torch.float32, "dense", seed, layers=1, rows=128, heads=1, dim=1)
        want = clones(arguments)
        op.reference(*want)
        op.kv_commit(*arguments)
        assert_same(arguments, want)


def test_rows_are_bit_equal_to_batch_of_one():
    arguments = inputs(3, 31, torch.bfloat16, "heads first", 5)
    alone = clones(arguments)
    op.kv_commit(*arguments)
    for b in range(3):
        rows = slice(b, b + 1)
        one = [alone[0][:, :, rows].clone(), *(a[rows].clone() for a in alone[1:])]
        op.kv_commit(*one)
        assert_same(one, [arguments[0][:, :, rows], *(a[rows] for a in arguments[1:])])


def test_same_result_on_any_number_of_threads():
    arguments = inputs(2, 64, torch.float32, "heads first", 3, layers=8, heads=4, dim=128)
    want = clones(arguments)
    op.reference(*want)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        op.kv_commit(*arguments)
    finally:
        torch.set_num_threads(before)
    assert_same(arguments, want)


def test_replay_is_idempotent_in_lengths_and_identity_path_moves_nothing():
    kv, _, _, base, new_lens = inputs(2, 16, torch.float32, "dense", 0)
    path = torch.arange(16, dtype=INT).repeat(2, 1)
    before = kv.clone()
    for _ in range(2):
        op.kv_commit(kv, path, torch.full((2,), 16, dtype=INT), base, new_lens)
        assert torch.equal(kv, before) and torch.equal(new_lens, base + 16)


@pytest.mark.parametrize("shape", [(0, 2, 1, 8, 1, 4), (2, 2, 0, 8, 1, 4), (2, 2, 1, 8, 0, 4), (2, 2, 1, 8, 1, 0)])
def test_empty(shape):
    batch = shape[2]
    new_lens = poison(torch.empty(batch, dtype=INT))
    base, count = torch.full((batch,), 3, dtype=INT), torch.ones(batch, dtype=INT)
    op.kv_commit(torch.empty(shape), torch.ones(batch, 2, dtype=INT), count, base, new_lens)
    assert new_lens.tolist() == [4] * batch
    kv = torch.ones(1, 2, 1, 4, 1, 4)
    lens = torch.zeros(1, dtype=INT)
    op.kv_commit(kv, torch.empty(1, 0, dtype=INT), lens, lens + 4, new := lens.clone())
    assert new.item() == 4 and bool((kv == 1).all())


def test_offsets_beyond_2_to_the_31_elements():
    rows, dim = 2**24 + 64, 128  # more than 2**31 elements for the keys and again for the values, hardly touched
    kv = torch.empty(1, 2, 1, rows, 1, dim, dtype=torch.uint8)
    base, nodes = rows - 64, torch.arange(64, dtype=torch.uint8)
    for c in range(2):
        kv[0, c, 0, base:, 0] = (nodes + 100 * c)[:, None]
    path = torch.tensor([[0, 2, 5, 63]], dtype=INT)
    new_lens = torch.zeros(1, dtype=INT)
    op.kv_commit(kv, path, torch.tensor([4], dtype=INT), torch.tensor([base], dtype=INT), new_lens)
    nodes[:4] = path[0]
    for c in range(2):
        assert bool((kv[0, c, 0, base:, 0] == (nodes + 100 * c)[:, None]).all())
    assert new_lens.item() == base + 4


def ints(*values):
    return torch.tensor(values, dtype=INT)


def arguments_of(**change):
    base = {
        "kv": torch.zeros(1, 2, 1, 8, 1, 4),
        "path": ints([0, 2, 3]),
        "num_path": ints(3),
        "base_lens": ints(2),
        "new_lens": ints(0),
    }
    return base | change


LENGTHS = ints(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": torch.zeros(1, 3)}, "path must be int32, got float32"),
        ({"num_path": torch.zeros(1, dtype=torch.int64)}, "num_path must be int32, got int64"),
        ({"base_lens": torch.zeros(1, dtype=torch.int64)}, "base_lens must be int32, got int64"),
        ({"new_lens": torch.zeros(1)}, "new_lens must be int32, got float32"),
        ({"kv": torch.zeros(2, 1, 8, 1, 4)}, "kv must have 6 dimensions"),
        ({"kv": torch.zeros(1, 3, 1, 8, 1, 4)}, r"dimension 1 of kv must be 2 \(keys and values\)"),
        ({"kv": torch.zeros(1, 2, 1, 8, 1, 8)[..., ::2]}, "kv must be dense in its last dimension"),
        (
            {"kv": torch.zeros(1, 2, 1, 1, 1, 4).expand(-1, -1, -1, 8, -1, -1)},
            "kv is written: it must not hold an element twice",
        ),
        ({"path": ints([0, 2], [0, 3])}, r"dimension 0 of path must be 1 \(B of kv\)"),
        ({"path": ints([0, 9, 2, 9, 3, 9])[:, ::2]}, "path must be contiguous"),
        ({"num_path": ints(1, 1)}, "dimension 0 of num_path must be 1"),
        ({"new_lens": LENGTHS, "base_lens": LENGTHS}, "new_lens is written: it must not overlap base_lens"),
        ({"num_path": ints(4)}, r"num_path\[0\] must lie in \[0, 3\], got 4"),
        ({"num_path": ints(-1)}, r"num_path\[0\] must lie in \[0, 3\], got -1"),
        ({"base_lens": ints(-1)}, r"base_lens\[0\] must lie in .* got -1"),
        ({"base_lens": ints(6)}, r"base_lens\[0\] must lie in .* = \[0, 5\], got 6"),
        ({"path": ints([-1, 2, 3])}, r"path\[0\]\[0\] must be above .* got -1"),
        ({"path": ints([0, 2, 2])}, r"path\[0\]\[2\] must be above .* got 2"),
        ({"path": ints([0, 2, 1])}, r"path\[0\]\[2\] must be above .* got 1"),
        ({"path": ints([0, 2, 6])}, r"path\[0\]\[2\] .* below 6 .* got 6"),
    ],
)
def test_bad_arguments_raise_and_change_nothing(change, message):
    arguments = arguments_of(**change)
    before = {k: v.clone() for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match="kv_commit: .*" + message):
        op.kv_commit(**arguments)
    assert all(torch.equal(arguments[k], v) for k, v in before.items())


@pytest.mark.parametrize("at", [1, 15, 16, 17, 32, 99])
def test_a_repeated_node_raises_wherever_it_is(at):
    path = torch.arange(100, dtype=INT)[None]
    path[0, at] = at - 1
    lens = torch.zeros(1, dtype=INT)
    with pytest.raises(RuntimeError, match=rf"path\[0\]\[{at}\] must be above the entry before it .* got {at - 1}"):
        op.kv_commit(torch.zeros(1, 2, 1, 100, 1, 4), path, ints(100), lens, lens.clone())


def layers_of(kv):
    return list(kv[:, 0].unbind(0)), list(kv[:, 1].unbind(0))


@pytest.mark.parametrize("layout", ["dense", "heads first", "strided"])
@pytest.mark.parametrize("layers", [1, 3, 64, 65])
def test_layers_equal_stacked(layers, layout):
    arguments = inputs(2, 17, torch.bfloat16, layout, 4, layers=layers)
    want = clones(arguments)
    op.reference(*want)
    op.kv_commit_layers(*layers_of(arguments[0]), *arguments[1:])
    assert_same(arguments, want)


def test_layers_in_tensors_of_their_own():
    arguments = inputs(2, 17, torch.float32, "dense", 4)
    want = clones(arguments)
    op.reference(*want)
    keys, values = ([x.clone() for x in half] for half in layers_of(arguments[0]))
    op.kv_commit_layers(keys, values, *arguments[1:])
    assert_same([torch.stack([torch.stack(pair) for pair in zip(keys, values, strict=True)]), *arguments[1:]], want)


A, C = torch.zeros(1, 8, 1, 4), torch.zeros(1, 8, 1, 4)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ([], [], "keys and values must have one tensor per layer, got 0 and 0"),
        ([A], [], "keys and values must have one tensor per layer, got 1 and 0"),
        ([A[0]], [C[0]], r"keys\[0\] must have 4 dimensions"),
        ([A], [C.half()], r"values\[0\] must have the dtype of keys\[0\]"),
        ([A], [torch.zeros(1, 9, 1, 4)], r"dimension 1 of values\[0\] must be 8 \(as in keys\[0\]\)"),
        ([A], [torch.zeros(1, 8, 1, 8)[..., :4]], r"values\[0\] must have the strides of keys\[0\], got 64 and 32"),
        ([A, C], [C, A], r"(keys|values)\[\d\] is written: it must not overlap (keys|values)\[\d\]"),
        ([A[..., ::2]], [C[..., ::2]], r"keys\[0\] must be dense in its last dimension"),
    ],
)
def test_bad_layers_raise(keys, values, message):
    rest = {k: v for k, v in arguments_of().items() if k != "kv"}
    with pytest.raises(RuntimeError, match="kv_commit_layers: .*" + message):
        op.kv_commit_layers(keys, values, **rest)


def test_a_bad_path_moves_no_layer():
    arguments = inputs(1, 9, torch.float32, "dense", 0, layers=70)
    arguments[1][0, 0] = -5
    arguments[2][:] = 1
    before = clones(arguments)
    with pytest.raises(RuntimeError, match=r"path\[0\]\[0\] must be above"):
        op.kv_commit_layers(*layers_of(arguments[0]), *arguments[1:])
    assert_same(arguments, before)


def test_opcheck_and_compile():
    arguments = inputs(2, 9, torch.float32, "heads first", 2)
    torch.library.opcheck(torch.ops.sparrow.kv_commit, tuple(clones(arguments)))
    want = clones(arguments)
    op.reference(*want)
    compiled(op.kv_commit, *arguments)
    assert_same(arguments, want)
    keys, values = layers_of(inputs(2, 9, torch.float32, "dense", 2)[0].clone())
    torch.library.opcheck(torch.ops.sparrow.kv_commit_layers, (keys, values, *clones(arguments[1:])))
    rest = inputs(2, 9, torch.float32, "dense", 2)
    want = clones(rest)
    op.reference(*want)
    keys, values = ([x.clone() for x in half] for half in layers_of(rest[0]))
    compiled(op.kv_commit_layers, keys, values, *rest[1:])
    assert_same([torch.stack([torch.stack(pair) for pair in zip(keys, values, strict=True)]), *rest[1:]], want)
