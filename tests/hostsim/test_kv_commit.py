import pytest
import torch

from sparrow_ext.ops import kv_commit as op
from tests.ops.checks import DTYPES, poison
from tests.ops.test_kv_commit import assert_same, clones, inputs, ints


@pytest.mark.parametrize("layout", ["dense", "heads first", "strided"])
@pytest.mark.parametrize("nodes", [1, 2, 15, 16, 17, 64, 128])
def test_equals_reference(sim, nodes, layout):
    for seed in range(2):
        arguments = inputs(3, nodes, DTYPES[(seed + nodes) % 3], layout, seed)
        want = clones(arguments)
        op.reference(*want)
        sim.ops.kv_commit(*arguments)
        assert_same(arguments, want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, *DTYPES])
def test_every_unit_of_copying(sim, dtype):
    for dim in (1, 2, 4, 7, 8):
        arguments = inputs(2, 20, torch.float32, "dense", 1, heads=1, dim=dim)
        arguments[0] = arguments[0].to(dtype)
        want = clones(arguments)
        op.reference(*want)
        sim.ops.kv_commit(*arguments)
        assert_same(arguments, want)


def test_in_place_aliasing_of_random_paths(sim):
    """Sources and targets overlap: storing a row before its chunk is loaded reads rows already overwritten."""
    for seed in range(30):
        arguments = inputs(1, 128, torch.float32, "dense", seed, layers=1, rows=128, heads=1, dim=1)
        want = clones(arguments)
        op.reference(*want)
        sim.ops.kv_commit(*arguments)
        assert_same(arguments, want)


def test_rows_longer_than_a_block_and_rows_equal_alone(sim):
    arguments = inputs(3, 31, torch.bfloat16, "dense", 5, heads=8, dim=264)  # 264 units of 16 bytes: two blocks
    alone = clones(arguments)
    sim.ops.kv_commit(*arguments)
    want = clones(alone)
    op.reference(*want)
    assert_same(arguments, want)
    for b in range(3):
        rows = slice(b, b + 1)
        one = [alone[0][:, :, rows].clone(), *(a[rows].clone() for a in alone[1:])]
        sim.ops.kv_commit(*one)
        assert_same(one, [arguments[0][:, :, rows], *(a[rows] for a in arguments[1:])])


def test_identity_path_replays_to_the_same_lengths(sim):
    kv, _, _, base, new_lens = inputs(2, 16, torch.float32, "dense", 0)
    path, before = torch.arange(16, dtype=torch.int32).repeat(2, 1), kv.clone()
    for _ in range(2):
        sim.ops.kv_commit(kv, path, ints(16, 16), base, new_lens)
        assert torch.equal(kv, before) and torch.equal(new_lens, base + 16)


@pytest.mark.parametrize("shape", [(0, 2, 1, 8, 1, 4), (2, 2, 0, 8, 1, 4), (2, 2, 1, 8, 0, 4), (2, 2, 1, 8, 1, 0)])
def test_empty(sim, shape):
    new_lens = poison(torch.empty(shape[2], dtype=torch.int32))
    base, count = torch.full((shape[2],), 3, dtype=torch.int32), torch.ones(shape[2], dtype=torch.int32)
    sim.ops.kv_commit(torch.empty(shape), torch.ones(shape[2], 2, dtype=torch.int32), count, base, new_lens)
    assert new_lens.tolist() == [4] * shape[2]


def test_bad_values_are_skipped_and_clamped(sim):
    """Rows outside the cache, entries below their own row, counts and lengths out of range."""
    kv = torch.arange(2 * 4 * 8, dtype=torch.float32).view(1, 2, 4, 8, 1, 1)
    path = torch.tensor([[0, 9, 3], [2, 0, 2**31 - 1], [-7, 2, 3], [1, 2, 3]], dtype=torch.int32)
    want, new_lens = kv.clone(), ints(0, 0, 0, 0)
    want[:, :, 0, 4], want[:, :, 1, 0] = kv[:, :, 0, 5], kv[:, :, 1, 2]  # sequence 0: base 2; 1: base 0
    error = ints(0)
    sim.ops.kv_commit(kv, path, ints(99, 3, -2, 3), ints(2, 0, 4, -1), new_lens, error)
    assert torch.equal(kv, want) and error.item() == 2 + 4
    assert new_lens.tolist() == [5, 3, 4, 2]


def test_what_sets_which_bit_of_the_error_word(sim):
    def bits(path, count, base):
        error, new = ints(0), ints(0)
        sim.ops.kv_commit(torch.zeros(1, 2, 1, 8, 1, 1), ints(path), ints(count), ints(base), new, error=error)
        return error.item()

    assert bits([0, 2, 3], 3, 2) == 0
    assert bits([0, 2, -77777], 2, 2) == 0  # beyond the count nothing is looked at
    assert bits([0, 2, 3], 4, 2) == 2 and bits([0, 2, 3], -1, 2) == 2
    assert bits([0, 2, 3], 3, -1) == 2 and bits([5, 6, 7], 1, 8) == 2 + 4
    assert bits([0, 2, 2], 3, 2) == 4 and bits([0, 2, 1], 3, 2) == 4 and bits([0, 2, 6], 3, 2) == 4
    assert bits([-1, 2, 3], 3, 2) == 4


def layers_of(kv):
    return list(kv[:, 0].unbind(0)), list(kv[:, 1].unbind(0))


@pytest.mark.parametrize("layout", ["dense", "heads first", "strided"])
@pytest.mark.parametrize("layers", [1, 3])
def test_layers_equal_stacked(sim, layers, layout):
    arguments = inputs(2, 17, torch.bfloat16, layout, 4, layers=layers)
    want = clones(arguments)
    op.reference(*want)
    keys, values = ([x.clone(memory_format=torch.preserve_format) for x in half] for half in layers_of(arguments[0]))
    sim.ops.kv_commit_layers(keys, values, *arguments[1:])
    assert_same([torch.stack([torch.stack(p) for p in zip(keys, values, strict=True)]), *arguments[1:]], want)


def test_more_layers_than_one_launch_takes(simulator):
    """130 tensors: two launches. Lengths are written once, by the last."""
    simulator.configure(seed=1)
    arguments = inputs(1, 9, torch.float32, "dense", 2, layers=65, heads=1, dim=4)
    want = clones(arguments)
    op.reference(*want)
    stacked = clones(arguments)
    simulator.ops.kv_commit(*stacked)
    assert_same(stacked, want)
    simulator.ops.kv_commit_layers(*layers_of(arguments[0]), *arguments[1:])
    assert_same(arguments, want)
