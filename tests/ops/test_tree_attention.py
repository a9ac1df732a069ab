import pytest
import torch

from sparrow_ext.ops import tree_attention as op
from sparrow_ext.ops.tree_mask import pack_words
from tests.ops.attention_cases import caches, clean, ints, poison_rows, words
from tests.ops.checks import DTYPES, assert_close64, available_isas, compiled, cpu_isa, poison, strided

# B, N, H, K, D, prefix lengths (ragged where B > 1)
SHAPES = [
    (1, 1, 7, 1, 128, [1500]),
    (1, 1, 1, 1, 16, [0]),
    (1, 2, 4, 2, 32, [63]),
    (3, 9, 4, 4, 64, [1, 0, 64]),
    (3, 16, 6, 2, 80, [65, 1024, 1023]),
    (1, 31, 8, 2, 24, [1025]),
    (1, 63, 8, 1, 20, [130]),
    (1, 64, 3, 1, 8, [64]),
    (2, 65, 4, 4, 16, [100, 7]),
    (1, 127, 2, 2, 256, [127]),
    (1, 128, 7, 1, 72, [2049]),
    (1, 5, 5, 1, 3, [40]),
    (1, 2, 2, 1, 16, [100_001]),
]


def case(shape, dtype, *, anc=True, used=None):
    b, n, h, k, d, lens = shape
    kc, vc = caches(b, max(lens) + n + 2, k, d, dtype)
    poison_rows((kc, vc), [length + (n if used is None else used[i]) for i, length in enumerate(lens)])
    generator = torch.Generator().manual_seed(1)
    q = strided(torch.randn(b, n, h, d, generator=generator).to(dtype))
    return q, kc, vc, ints(*lens), None if used is None else ints(*used), words(b, n) if anc else None


def check(got, q, kc, vc, lens, used, anc, what):
    kc, vc = clean(kc, vc)
    visible = op.visibility(lens, used, anc, q.shape[1], kc.shape[1])
    out, lse = op.reference(q.double(), kc.double(), vc.double(), lens, used, anc)
    assert_close64(got[0], op.eager(q, kc, vc, visible).nan_to_num(0.0), out, what)
    assert_close64(got[1], op.reference(q.float(), kc.float(), vc.float(), lens, used, anc)[1], lse, what + " lse")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype, isa):
    args = case(shape, dtype)
    with cpu_isa(isa):
        got = op.tree_attention(*args)
    check(got, *args, f"{shape}")


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_unused_nodes(dtype, isa):
    args = case((3, 70, 4, 2, 32, [30, 5, 0]), dtype, used=[66, 0, 3])
    with cpu_isa(isa):
        out, lse = op.tree_attention(*args)
    for b, used in enumerate([66, 0, 3]):
        assert bool((out[b, used:] == 0).all()) and bool(lse[b, used:].isneginf().all())
    check((out, lse), *args, "num_nodes")


@pytest.mark.parametrize("isa", available_isas())
def test_bits_of_unused_nodes_are_ignored(isa):
    q, kc, vc, lens, used, _ = case((2, 70, 2, 1, 16, [9, 0]), torch.float32, used=[3, 66])
    everything = torch.full((2, 70, 2), -1)
    in_use = pack_words((torch.arange(128) < used[:, None])[:, None].expand(2, 70, 128))
    with cpu_isa(isa):
        got = op.tree_attention(q, kc, vc, lens, used, everything)
        want = op.tree_attention(q, kc, vc, lens, used, in_use)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_visible_set_is_exact(dtype, isa):
    """K = 0, V one-hot: a row's output is 1 / count on its visible keys and exactly 0 elsewhere, D keys at a time."""
    d, n, lens = 64, 65, [0, 3, 190]
    q, kc, vc, lengths, _, anc = case((3, n, 2, 1, d, lens), dtype)
    kc.zero_()
    visible = op.visibility(lengths, None, anc, n, kc.shape[1])
    with cpu_isa(isa):
        for first in range(0, kc.shape[1], d):
            hot = torch.eye(kc.shape[1], dtype=dtype)[:, first : first + d]
            vc.zero_()[..., : hot.shape[1]] = hot[:, None]
            out, lse = op.tree_attention(q, kc, vc, lengths, None, anc)
            want = visible[..., first : first + d].double() / visible.sum(-1, keepdim=True)
            for head in out.unbind(2):
                assert torch.equal(head[..., : want.shape[-1]] != 0, want != 0)
                assert torch.equal(head[..., : want.shape[-1]], want.to(dtype))
    torch.testing.assert_close(lse, visible.sum(-1).float().log()[..., None].expand_as(lse))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_their_company(dtype, isa):
    """A row's bits stay whatever B, N, max_prefix_len and the number of threads."""
    q, kc, vc, lens, _, anc = case((3, 67, 8, 2, 64, [2100, 0, 1030]), dtype)
    with cpu_isa(isa):
        out, lse = op.tree_attention(q, kc, vc, lens, None, anc)
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if threads > 1 else 2)
        again = op.tree_attention(q, kc, vc, lens, None, anc, max_prefix_len=2100)
        torch.set_num_threads(threads)
        assert torch.equal(out, again[0]) and torch.equal(lse, again[1])
        for b in range(3):
            rows = slice(b, b + 1)
            one = op.tree_attention(q[rows], kc[rows], vc[rows], lens[rows], None, anc[rows])
            assert torch.equal(one[0][0], out[b]) and torch.equal(one[1][0], lse[b])
        for n in (1, 2, 13, 64):
            few = op.tree_attention(q[:, :n], kc, vc, lens, None, anc[:, :n, : (n + 63) // 64].contiguous())
            assert torch.equal(few[0], out[:, :n]) and torch.equal(few[1], lse[:, :n])


def test_no_words_mean_a_chain():
    q, kc, vc, lens, _, _ = case((2, 66, 4, 2, 16, [90, 1]), torch.float32)
    chain = pack_words(torch.ones(66, 128, dtype=torch.bool).tril())
    for a, b in zip(
        op.tree_attention(q, kc, vc, lens), op.tree_attention(q, kc, vc, lens, None, chain.repeat(2, 1, 1)), strict=True
    ):
        assert torch.equal(a, b)


def as_prefix(kc, vc, length, anc, node):
    """Caches in which the node's keys lie in a row, itself last."""
    slots = [j for j in range(len(anc) * 64) if int(anc[j // 64]) >> (j % 64) & 1]
    rows = [*range(length), *(length + j for j in slots)]
    assert slots[-1] == node
    return kc[:, rows], vc[:, rows], len(rows) - 1


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split_size", [0, 1, 50, 64])
@pytest.mark.parametrize("length", [0, 5, 63, 64, 97, 126, 1020])
def test_a_node_has_the_bits_of_its_path_as_prefix(length, split_size, dtype, isa):
    q, kc, vc, lens, _, anc = case((1, 100, 6, 2, 40, [length]), dtype)
    with cpu_isa(isa):
        out, lse = op.tree_attention(q, kc, vc, lens, anc=anc, split_size=split_size)
        for node in (0, 1, 7, 63, 64, 80, 99):
            keys, values, prefix = as_prefix(kc, vc, length, anc[0, node], node)
            want = op.tree_attention(q[:, node : node + 1], keys, values, ints(prefix), split_size=split_size)
            assert torch.equal(out[:, node], want[0][:, 0]) and torch.equal(lse[:, node], want[1][:, 0]), node


@pytest.mark.parametrize("split_size", [1, 50, 64, 700, 4096])
def test_split_sizes(split_size):
    args = case((2, 10, 4, 2, 32, [1500, 64]), torch.float32)
    check(op.tree_attention(*args, split_size=split_size), *args, f"split {split_size}")


@pytest.mark.parametrize("scale", [0.0, 3.0, -0.5])
def test_scale_and_large_scores(scale):
    q, kc, vc, lens, _, anc = case((1, 5, 2, 1, 64, [200]), torch.float32)
    q, out, lse = q * 5, *op.tree_attention(q * 5, kc, vc, lens, None, anc, scale)
    kc, vc = clean(kc, vc)
    want = op.reference(q.double(), kc.double(), vc.double(), lens, None, anc, scale)
    visible = op.visibility(lens, None, anc, 5, kc.shape[1])
    assert_close64(out, op.eager(q, kc, vc, visible, scale), want[0])
    assert_close64(lse, op.reference(q, kc, vc, lens, None, anc, scale)[1], want[1])


def test_sees_nothing():
    q, kc, vc, lens, _, anc = case((1, 3, 2, 1, 16, [0]), torch.float32)
    out, lse = op.tree_attention(q, kc, vc, lens, None, torch.zeros_like(anc))
    assert bool((out == 0).all()) and bool(lse.isneginf().all())


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_with_those_who_see_them(dtype, value, isa):
    q, kc, vc, lens, _, _ = case((1, 4, 2, 1, 32, [70]), dtype, anc=False)
    anc = torch.tensor([[[1], [3], [5], [9]]])  # three children of the root
    with cpu_isa(isa):
        clean_out, clean_lse = op.tree_attention(q, kc, vc, lens, None, anc)
        kc[0, 70 + 2, :, 3] = float("nan")
        vc[0, 70 + 3, :, 5] = value
        out, lse = op.tree_attention(q, kc, vc, lens, None, anc)
        assert torch.equal(out[:, :2], clean_out[:, :2]) and torch.equal(lse[:, :2], clean_lse[:, :2])
        assert bool(out[:, 2].isnan().all()) and bool(lse[:, 2].isnan().all())
        assert torch.equal(out[:, 3, :, :5], clean_out[:, 3, :, :5]) and not bool(out[:, 3, :, 5].isfinite().any())
        kc[0, 5] = float("nan")
        assert bool(op.tree_attention(q, kc, vc, lens, None, anc)[0].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_form(dtype):
    q, kc, vc, lens, used, anc = case((2, 9, 4, 2, 24, [1100, 3]), dtype, used=[9, 4])
    want, want_lse = op.tree_attention(q, kc, vc, lens, used, anc, max_prefix_len=1100)
    size = op.tree_attention_workspace_size(2, 9, 4, 24, 1100)
    buffer = torch.full((size + 64,), 171, dtype=torch.uint8)
    out, lse = poison(strided(torch.zeros(2, 9, 4, 24, dtype=dtype))), poison(torch.empty(2, 9, 4))
    op.tree_attention_out(q, kc, vc, lens, used, anc, 24**-0.5, 1100, 0, out, lse, buffer[:size])
    assert torch.equal(out, want) and torch.equal(lse, want_lse) and bool((buffer[size:] == 171).all())
    poison(out)
    op.tree_attention_out(q, kc, vc, lens, used, anc, 24**-0.5, 1100, 0, out, None, buffer)
    assert torch.equal(out, want)
    with pytest.raises(RuntimeError, match="workspace must have at least"):
        op.tree_attention_out(q, kc, vc, lens, used, anc, 1.0, 1100, 0, out, None, buffer[: size - 1])


def test_strides_beyond_int32():
    far = 2**31 + 64
    buffer = torch.empty(far + 4096, dtype=torch.bfloat16)  # touched in a few places only
    q = torch.randn(2, 1, 2, 16).bfloat16()
    for size, stride in [((1, 3, 1, 16), (0, far // 2, 16, 1)), ((2, 3, 1, 16), (far, 16, 16, 1))]:
        cache = buffer.as_strided(size, stride)
        cache.copy_(torch.randn(size))
        args = q[: size[0]], ints(*[2] * size[0])
        near = cache.contiguous()
        want = op.tree_attention(args[0], near, near, args[1])
        assert torch.equal(op.tree_attention(args[0], cache, cache, args[1])[0], want[0])


@pytest.mark.parametrize(("b", "n"), [(0, 4), (2, 0), (0, 0)])
def test_empty(b, n):
    kc, vc = torch.zeros(b, 8, 2, 16), torch.zeros(b, 8, 2, 16)
    anc = torch.zeros(b, n, (n + 63) // 64, dtype=torch.int64)
    out, lse = op.tree_attention(torch.zeros(b, n, 4, 16), kc, vc, ints(*[3] * b), None, anc)
    assert out.shape == (b, n, 4, 16) and lse.shape == (b, n, 4)


BAD = [
    ({"q": torch.zeros(1, 3, 4, 16, dtype=torch.float64)}, "q must be float32 or bfloat16 or float16, got float64"),
    ({"q": torch.zeros(3, 4, 16)}, "q must have 4 dimensions"),
    ({"q": torch.zeros(1, 129, 4, 16)}, "at most 128 nodes"),
    ({"q": torch.zeros(1, 3, 3, 16)}, "must be a multiple of the kv heads"),
    ({"q": torch.zeros(1, 3, 16, 4).transpose(2, 3)}, "q must be dense in its last dimension"),
    ({"k_cache": torch.zeros(1, 20, 2, 16).bfloat16()}, "k_cache must have the dtype of q"),
    ({"k_cache": torch.zeros(1, 20, 2, 8)}, "dimension 3 of k_cache must be 16"),
    ({"v_cache": torch.zeros(1, 19, 2, 16)}, "dimension 1 of v_cache must be 20"),
    ({"v_cache": torch.zeros(1, 20, 16, 2).transpose(2, 3)}, "v_cache must be dense in its last dimension"),
    ({"prefix_lens": torch.tensor([3])}, "prefix_lens must be int32, got int64"),
    ({"prefix_lens": ints(3, 3)}, "dimension 0 of prefix_lens must be 1"),
    ({"prefix_lens": ints(-1)}, r"prefix_lens\[0\] must lie in \[0, max_prefix_len = 18\], got -1"),
    ({"prefix_lens": ints(19)}, r"prefix_lens\[0\] must lie in \[0, max_prefix_len = 18\], got 19"),
    ({"prefix_lens": ints(18)}, r"prefix_lens\[0\] \+ N must be <= Smax = 20, got 18 \+ 3"),
    ({"num_nodes": ints(4)}, r"num_nodes\[0\] must lie in \[0, N = 3\], got 4"),
    ({"num_nodes": ints(-1)}, r"num_nodes\[0\] must lie in"),
    ({"anc": torch.zeros(1, 3, 2, dtype=torch.int64)}, r"dimension 2 of anc must be 1 \(W = ceil\(N / 64\)\)"),
    ({"anc": torch.zeros(1, 3, 1, dtype=torch.int32)}, "anc must be int64, got int32"),
    ({"anc": torch.zeros(1, 3, 2, dtype=torch.int64)[:, :, :1]}, "anc must be contiguous"),
    ({"max_prefix_len": -1}, r"max_prefix_len must lie in \[0, 2147483647\], got -1"),
    ({"split_size": -1}, r"split_size must lie in \[0, 1152921504606846976\], got -1"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_raise(change, message):
    good = {
        "q": torch.zeros(1, 3, 4, 16),
        "k_cache": torch.zeros(1, 20, 2, 16),
        "v_cache": torch.zeros(1, 20, 2, 16),
        "prefix_lens": ints(5),
        "max_prefix_len": 18,
    }
    op.tree_attention(**good)
    with pytest.raises(RuntimeError, match=f"tree_attention: .*{message}"):
        op.tree_attention(**(good | change))


def test_head_dim_limit():
    wide = torch.zeros(1, 4, 1, 257)
    with pytest.raises(RuntimeError, match=r"head_dim must lie in \[1, 256\], got 257"):
        op.tree_attention(wide[:, :1], wide, wide, ints(0))


def test_opcheck_and_compile():
    q, kc, vc, lens, used, anc = case((2, 5, 4, 2, 16, [9, 3]), torch.float32, used=[5, 2])
    args = (q, kc, vc, lens, used, anc, 0.25, 12, 0)
    torch.library.opcheck(torch.ops.sparrow.tree_attention, args)
    out, lse = torch.empty(q.shape), torch.empty(q.shape[:3])
    workspace = torch.empty(op.tree_attention_workspace_size(2, 5, 4, 16, 12), dtype=torch.uint8)
    torch.library.opcheck(torch.ops.sparrow.tree_attention_out, (*args, out, lse, workspace))
    for got, want in zip(compiled(op.tree_attention, *args), op.tree_attention(*args), strict=True):
        assert torch.equal(got, want)
