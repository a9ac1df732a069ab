import pytest
import torch

from sparrow_ext.ops import tree_attention as op
from tests.ops.attention_cases import ints
from tests.ops.checks import DTYPES, poison, strided
from tests.ops.test_tree_attention import case, check

HALF = [torch.bfloat16, torch.float16]
# B, N, H, K, D, prefix lengths. Padded head_dims, all families of warps, 2 to 4 stages, row tiles, splits, G = 7.
SHAPES = [
    (1, 1, 7, 1, 128, [130]),
    (1, 17, 7, 1, 128, [300]),
    (3, 9, 4, 2, 64, [1, 0, 200]),
    (1, 64, 2, 1, 64, [64]),
    (2, 65, 2, 1, 80, [63, 0]),
    (1, 128, 2, 1, 64, [65]),
    (1, 2, 4, 4, 24, [129]),
    (1, 16, 1, 1, 112, [400]),
    (2, 3, 5, 1, 80, [5, 200]),
    (1, 43, 3, 1, 128, [70]),  # 129 rows
    (1, 31, 7, 1, 128, [190]),  # 217
    (2, 51, 5, 1, 80, [140, 3]),  # 255
    (1, 128, 2, 1, 64, [1]),  # 256, two tiles of the tree
    (1, 1, 257, 1, 40, [130]),  # 257, two tiles of rows
]
PLAIN = [(3, 9, 4, 2, 20, [1, 0, 140]), (1, 65, 1, 1, 6, [40]), (1, 2, 2, 1, 256, [33])]


def run(sim, q, kc, vc, lens, used=None, anc=None, scale=None, bound=None, split_size=0):
    bound = kc.shape[1] if bound is None else bound
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return sim.ops.tree_attention(q, kc, vc, lens, used, anc, scale, bound, split_size)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(sim, shape, request):
    dtype = HALF[request.node.callspec.params["sim"] % 2]
    args = case(shape, dtype)
    check(run(sim, *args, bound=max(shape[-1])), *args, str(shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_shapes_without_matrix_units(simulator, shape, dtype):
    simulator.configure(seed=2)
    args = case(shape, dtype)
    check(run(simulator, *args), *args, str(shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("nodes", "used"), [(20, [18, 0, 3]), (67, [65, 0, 9])])  # 40 and 134 rows
def test_unused_nodes(sim, nodes, used, dtype):
    for lens in ([30, 5, 0], [150, 5, 0]):  # one split and two
        args = case((3, nodes, 4, 2, 32, lens), dtype, used=used)
        out, lse = run(sim, *args, bound=max(lens))
        for b, n in enumerate(used):
            assert bool((out[b, n:] == 0).all()) and bool(lse[b, n:].isneginf().all())
        check((out, lse), *args, "num_nodes")


@pytest.mark.parametrize("dtype", DTYPES)
def test_visible_set_is_exact(simulator, dtype):
    simulator.configure(seed=1)
    d, n, lens = 64, 65, [0, 3, 190]
    q, kc, vc, lengths, _, anc = case((3, n, 1, 1, d, lens), dtype)
    kc.zero_()
    visible = op.visibility(lengths, None, anc, n, kc.shape[1])
    for first in range(0, kc.shape[1], d):
        hot = torch.eye(kc.shape[1], dtype=dtype)[:, first : first + d]
        vc.zero_()[..., : hot.shape[1]] = hot[:, None]
        out, lse = run(simulator, q, kc, vc, lengths, None, anc, bound=190)
        want = visible[..., first : first + d].double() / visible.sum(-1, keepdim=True)
        assert torch.equal(out[:, :, 0, : want.shape[-1]], want.to(dtype))
    torch.testing.assert_close(lse[..., 0], visible.sum(-1).float().log())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [32, 80])
def test_rows_do_not_depend_on_their_company(sim, dim, dtype):
    """Not on B or the bound of the lengths; with a split size not on N either."""
    q, kc, vc, lens, _, anc = case((2, 66, 2, 1, dim, [150, 300]), dtype)
    out, lse = run(sim, q, kc, vc, lens, None, anc)
    again = run(sim, q[1:], kc[1:], vc[1:], lens[1:], None, anc[1:], bound=4000)
    assert torch.equal(out[1:], again[0]) and torch.equal(lse[1:], again[1])
    out, lse = run(sim, q, kc, vc, lens, None, anc, split_size=100)
    for n in (3, 20, 40):  # 6, 40 and 80 rows, of 132
        words = anc[1:, :n, :1].contiguous()
        few = run(sim, q[1:, :n], kc[1:], vc[1:], lens[1:], None, words, split_size=100)
        assert torch.equal(few[0], out[1:, :n]) and torch.equal(few[1], lse[1:, :n])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [2, 9, 40])  # 8, 36 and 160 rows
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_with_those_who_see_them(sim, value, heads, dtype):
    q, kc, vc, lens, _, _ = case((1, 4, heads, 1, 32, [70]), dtype, anc=False)
    anc = torch.tensor([[[1], [3], [5], [9]]])  # three children of the root
    clean_out, clean_lse = run(sim, q, kc, vc, lens, None, anc)
    kc[0, 70 + 2, :, 3] = float("nan")
    vc[0, 70 + 3, :, 5] = value
    out, lse = run(sim, q, kc, vc, lens, None, anc)
    torch.testing.assert_close(out[:, :2], clean_out[:, :2])
    assert torch.equal(lse[:, :2], clean_lse[:, :2])
    assert bool(out[:, 2].isnan().all()) and bool(lse[:, 2].isnan().all())
    torch.testing.assert_close(out[:, 3, :, :5], clean_out[:, 3, :, :5])
    assert not bool(out[:, 3, :, 5].isfinite().any())
    kc[0, 5] = float("nan")
    assert bool(run(sim, q, kc, vc, lens, None, anc)[0].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split_size", [50, 64, 2**40])
def test_split_sizes(simulator, split_size, dtype):
    args = case((2, 3, 2, 1, 32, [200, 64]), dtype)
    simulator.configure(seed=3)
    check(run(simulator, *args, split_size=split_size), *args, f"split {split_size}")


def test_chain_scale_and_nothing_seen(sim):
    q, kc, vc, lens, _, anc = case((1, 5, 2, 1, 64, [70]), torch.bfloat16)
    for scale in (0.0, 3.0, -0.5):
        out, lse = run(sim, q, kc, vc, lens, None, None, scale)
        want = op.reference(q.double(), *(x.nan_to_num().double() for x in (kc, vc)), lens, None, None, scale)
        torch.testing.assert_close(out.double(), want[0], atol=0.03, rtol=0.03)
        torch.testing.assert_close(lse.double(), want[1], atol=0.03, rtol=0.01)
    out, lse = run(sim, q, kc, vc, ints(0), None, torch.zeros_like(anc))
    assert bool((out == 0).all()) and bool(lse.isneginf().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_form_and_misaligned_rows(sim, dtype):
    q, kc, vc, lens, used, anc = case((2, 5, 4, 2, 16, [140, 3]), dtype, used=[5, 4])
    want, want_lse = run(sim, q, kc, vc, lens, used, anc, bound=140)
    size = torch.ops.sparrow.tree_attention_workspace_size(2, 5, 4, 16, 140, 0)
    buffer = torch.full((size + 64,), 171, dtype=torch.uint8)
    out, lse = poison(strided(torch.zeros(2, 5, 4, 16, dtype=dtype))), poison(torch.empty(2, 5, 4))
    sim.ops.tree_attention_out(q, kc, vc, lens, used, anc, 0.25, 140, 0, out, lse, buffer[:size])
    assert torch.equal(out, want) and torch.equal(lse, want_lse) and bool((buffer[size:] == 171).all())
    shifted = torch.zeros(q.numel() + 1, dtype=dtype)[1:].view(q.shape).copy_(q)
    args = shifted, kc, vc, lens, used, anc
    check(run(sim, *args), *args, "misaligned")
    with pytest.raises(RuntimeError, match="workspace must have at least"):
        sim.ops.tree_attention_out(q, kc, vc, lens, used, anc, 0.25, 140, 0, out, None, buffer[: size - 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_out_of_range_stay_inside_the_cache(sim, dtype):
    q, kc, vc, _, _, anc = case((4, 5, 2, 1, 16, [40] * 4), dtype)
    lens, used = ints(-3, 2**31 - 1, 41, 45), ints(2**31 - 1, -1, 5, 5)
    run(sim, q, kc, vc, lens, used, anc)
    run(sim, q, kc, vc, lens, used, anc, bound=41)
    assert run(sim, q[:0], kc[:0], vc[:0], lens[:0], None, anc[:0])[0].shape == (0, 5, 2, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clamped_length_sets_the_error_word(sim, dtype):
    q, kc, vc, lens, used, anc = case((2, 5, 2, 1, 16, [40, 3]), dtype, used=[5, 4])
    rows = kc.shape[1]

    def word(lens, used, bound) -> int:
        error = torch.zeros(1, dtype=torch.int32)
        sim.ops.tree_attention(q, kc, vc, lens, used, anc, 0.25, bound, 0, error)
        return error.item()

    assert word(lens, used, 40) == 0 and word(ints(rows - 5, 0), None, rows) == 0
    for bad in [(lens, used, 39), (ints(-1, 3), used, 40), (lens, ints(6, 4), 40), (lens, ints(5, -1), 40)]:
        assert word(*bad) == 2
    assert word(ints(rows - 4, 3), None, rows) == 2  # the tree would end behind the cache


@pytest.mark.parametrize(("nodes", "rows"), [(1, 16), (17, 64), (65, 128)])
def test_stages_follow_the_shared_memory(simulator, nodes, rows):
    """Two to four tiles in flight, by what a block may have; the bits are the same."""
    args = case((1, nodes, 1, 1, 128, [400]), torch.bfloat16)
    results, sizes = [], []
    for kib in (99, 163, 227):
        simulator.configure(seed=2, shared_kib=kib)
        results.append(run(simulator, *args, bound=400))
        sizes.append(simulator.shared_bytes("attention_mma_kernel<kDraft"))
    m = simulator.module
    blocks = m.attention_blocks(8 if rows == 128 else 4)
    stages = [m.attention_stages(rows * 256, 2 * 64 * 256, blocks, kib * 1024) for kib in (99, 163, 227)]
    assert stages == ([2, 4, 4] if rows == 128 else [2, 2, 3])
    for size, count in zip(sizes, stages, strict=True):
        assert 0 <= size - (rows + 2 * 64 * count) * 256 < 1024  # and the simulator's red zones
    assert all(torch.equal(out, results[0][0]) and torch.equal(lse, results[0][1]) for out, lse in results)


# What a block may have, in KiB, and the rows and stages it then has at head_dim 128: sm_89 has no room for 256 rows.
ROOM = [(99, 128, 2), (163, 256, 2), (180, 256, 3), (227, 256, 4)]


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
@pytest.mark.parametrize(("nodes", "heads", "used"), [(43, 3, None), (66, 4, [66, 40]), (31, 7, [31, 30])])
def test_warps_of_32_rows_give_the_bits_of_16(simulator, nodes, heads, used, bad):
    """Ragged prefixes, splits of 100 keys; a value that is not finite in the first of the tree's tiles."""
    dtype = torch.bfloat16 if heads % 2 else torch.float16
    q, kc, vc, lens, used, anc = case((2, nodes, heads, 1, 128, [250, 63]), dtype, used=used or [nodes] * 2)
    simulator.configure(seed=1)
    clean, _ = run(simulator, q, kc, vc, lens, used, anc, split_size=100)
    if bad is not None:
        vc[0, 250 + 5, 0, 3] = vc[1, 63 + 10, 0, 3] = bad
    results = []
    for kib, rows, stages in ROOM:
        simulator.configure(seed=1, shared_kib=kib)
        results.append(run(simulator, q, kc, vc, lens, used, anc, split_size=100))
        size = simulator.shared_bytes("attention_mma_kernel<kDraft") - simulator.module.TIGHT_BYTES * (rows == 256)
        assert 0 <= size - (rows + 2 * 64 * stages) * 256 < 1024
    n = min(nodes, 128 // heads)  # once more without the nodes beyond: 128 rows or fewer, whatever the room
    few = run(
        simulator, q[:, :n], kc, vc, lens, used.clamp(max=n), anc[:, :n, : (n + 63) // 64].contiguous(), split_size=100
    )
    for out, lse in results:
        torch.testing.assert_close((out, lse), results[0], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(out[:, :n], few[0], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(lse[:, :n], few[1], rtol=0, atol=0, equal_nan=True)
    out = results[0][0]
    assert bool(out[..., 3].isfinite().all()) == (bad is None)
    torch.testing.assert_close(out[..., 4:], clean[..., 4:])  # key by key, or by mma


def test_too_many_sequences_are_refused(simulator):
    q, kv = torch.zeros(65536, 1, 1, 8), torch.zeros(1, 1, 1, 8).expand(65536, 1, 1, 8)
    with pytest.raises(RuntimeError, match="tree_attention: B must be <= 65535 on CUDA, got 65536"):
        run(simulator, q, kv, kv, torch.zeros(65536, dtype=torch.int32))
    q, kv = q.view(1, 1, 65536, 8), kv.transpose(0, 2)
    with pytest.raises(RuntimeError, match="tree_attention: K must be <= 65535 on CUDA, got 65536"):
        run(simulator, q, kv, kv, torch.zeros(1, dtype=torch.int32))
