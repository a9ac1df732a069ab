"""The host's pure functions: how attention is cut, how much scratch an operator takes, what shares memory."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("wish", [0, 1, 50, 64, 100_000])
def test_splits_cover_every_prefix_and_fit_grid_and_scratch(simulator, wish):
    m = simulator.module
    bound = 0
    while bound < 70_000:
        prefix = 0
        while prefix <= bound:
            keys, used = m.attention_split_keys(prefix, wish), m.attention_used_splits(prefix, wish)
            assert used * keys >= prefix and (used == 1 or (used - 1) * keys < prefix)
            assert used <= m.attention_grid_splits(bound, wish) <= m.attention_scratch_splits(bound, wish)
            assert wish > 0 or keys % m.TILE_KEYS == 0
            prefix += 1 + prefix // 3
        bound += 1 + bound // 7


def test_stages(simulator):
    m = simulator.module
    row = 256  # bytes: head_dim 128, 16 bit
    stage = 2 * m.TILE_KEYS * row

    def stages(rows: int, warps: int, limit: int) -> int:
        return m.attention_stages(rows * row, stage, m.attention_blocks(warps), limit * 1024)

    assert (stages(64, 4, 227), stages(128, 8, 227)) == (3, 4)  # sm_90: two blocks of 64 rows, one of 128
    assert (stages(64, 4, 163), stages(128, 8, 163)) == (2, 4)  # sm_80
    assert (stages(64, 4, 99), stages(128, 8, 99)) == (2, 2)  # sm_89
    assert 128 * row + 2 * stage <= 99 * 1024  # the largest block fits the smallest limit


def test_rows256_stages(simulator):
    m = simulator.module
    row = 256
    stages = [m.attention_stages(m.TIGHT_BYTES + 256 * row, 128 * row, m.attention_blocks(8), k * 1024)
              for k in (137, 163, 180, 227)]  # fmt: skip
    assert stages == [2, 2, 3, 4]  # 163: sm_80; 227: sm_90 and sm_100


@pytest.mark.parametrize("row", [128, 176, 256])  # bytes: head_dim 64, 80 (padded), 128
def test_family_follows_rows_split_size_and_shared_memory(simulator, row):
    m = simulator.module

    def family(rows: int, fixed: bool = False, kib: int = 227) -> str:
        return m.attention_family(rows, fixed, row, kib * 1024).name

    for kib in (99, 163, 227):
        assert [family(rows, kib=kib) for rows in (1, 16, 17, 64, 65, 128)] == [
            *["few_rows"] * 2,
            *["rows64"] * 2,
            *["rows128"] * 2,
        ]
        assert family(1, True, kib) == family(64, True, kib) == "rows64" and family(65, True, kib) == "rows128"
    for rows in (129, 256, 257, 128 * 28):
        for fixed in (False, True):
            assert family(rows, fixed) == family(rows, fixed, 163) == "rows256"
            assert family(rows, fixed, 99) == ("rows128" if row == 256 else "rows256")
    least = m.TIGHT_BYTES + (256 + 2 * 2 * m.TILE_KEYS) * row  # the queries and two stages
    assert m.attention_family(129, False, row, least).name == "rows256"
    assert m.attention_family(129, False, row, least - 1).name == "rows128"


def test_lists_of_top_k_fit_the_merge(simulator):
    m = simulator.module
    for vocab in [1, 64, 4096, 4097, 32_000, 152_064, 262_144, 262_145, 2**24, 2**31 - 1]:
        assert 1 <= m.topk_cuda_lists(vocab) <= 64 and 1 <= m.lm_head_lists(vocab) <= 512


def test_products_saturate(simulator):
    m = simulator.module
    assert m.TOO_MANY == 2**60
    assert m.product([3, 5, 7]) == 105 and m.product([2**31, 2**28]) == 2**59
    for counts in ([2**30, 2**30], [2**31] * 5, [2**62, 1, 3], [2**59, 3]):
        assert m.product(counts) == m.TOO_MANY
    assert m.product([2**62, 2**62, 0]) == 0


SIZES = {
    "attention_workspace": 5,
    "draft_attention_roped": 4,
    "hsr_project_workspace": 4,
    "lm_head_topk_workspace": 4,
    "topk_lse_workspace": 3,
    "sample_rows_workspace": 2,
    "skinny_linear_workspace": 3,
}


@pytest.mark.parametrize("name", SIZES)
def test_scratch_grows_with_each_argument_and_never_wraps(simulator, name):
    size = getattr(simulator.module, name)
    steps = [1, 2, 63, 64, 65, 1000, 2**20, 2**31 - 1]
    for at in range(SIZES[name]):
        for base in (1, 100, 2**31 - 1):
            grown = [size(*[n if i == at else base for i in range(SIZES[name])]) for n in steps]
            assert grown == sorted(grown) and grown[0] > 0 and grown[-1] < 2**63
    assert size(*[2**31 - 1] * SIZES[name]) > 2**57  # every count at its bound: more than any memory


def test_known_sizes(simulator):
    m = simulator.module
    assert m.attention_workspace(1, 2, 3, 16, 5) == 1 * 5 * 2 * 3 * (16 + 2) * 4
    assert m.topk_lse_workspace(3, 8193, 10) == 3 * 3 * (2 + 2 * 10) * 4  # three tiles of 4096 on CUDA
    assert m.sample_rows_workspace(2, 4097) == 2 * 65 * 4  # 65 blocks of 64 tokens on the CPU


DIMS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 24)), max_size=3)


def addresses(base: int, item: int, dims: list[tuple[int, int]]) -> list[int]:
    """Every byte of every element, repeated where elements share it."""
    steps = itertools.product(*(range(count) for count, _ in dims))
    starts = [base + sum(x * stride for x, (_, stride) in zip(step, dims, strict=True)) for step in steps]
    return [start + byte for start in starts for byte in range(item)]


@settings(max_examples=1500, derandomize=True, database=None, deadline=None)
@given(st.integers(0, 60), st.sampled_from([1, 2, 4]), DIMS, st.integers(0, 60), st.sampled_from([1, 2, 4]), DIMS)
def _overlap_is_exact(m, base, item, dims, base2, item2, dims2):
    one, two = m.Block(base, item, dims), m.Block(base2, item2, dims2)
    share = bool(set(addresses(base, item, dims)) & set(addresses(base2, item2, dims2)))
    assert m.meet(one, two) == m.meet(two, one) == share


@settings(max_examples=1500, derandomize=True, database=None, deadline=None)
@given(st.sampled_from([1, 2, 4]), DIMS)
def _no_element_twice(m, item, dims):
    held = addresses(0, item, dims)
    if len(set(held)) < len(held):
        assert m.meets_itself(m.Block(0, item, dims))


def test_overlap_of_strided_blocks_is_exact(simulator):
    _overlap_is_exact(simulator.module)


def test_what_holds_a_byte_twice_is_found(simulator):
    _no_element_twice(simulator.module)


def test_layouts_of_caches_do_not_meet(simulator):
    """Keys and values interleaved, heads first, slices of a fused projection."""
    m, item = simulator.module, 2
    b, rows, heads, dim = 3, 40, 2, 16
    row = heads * dim * item
    for base, dims in [
        (0, [(dim, item), (heads, dim * item), (rows, 2 * row), (b, 2 * rows * row)]),
        (row, [(dim, item), (heads, dim * item), (rows, 2 * row), (b, 2 * rows * row)]),
    ]:
        assert not m.meets_itself(m.Block(base, item, dims))
    keys = m.Block(0, item, [(dim, item), (heads, dim * item), (rows, 2 * row), (b, 2 * rows * row)])
    values = m.Block(row, item, [(dim, item), (heads, dim * item), (rows, 2 * row), (b, 2 * rows * row)])
    assert not m.meet(keys, values)
    assert m.meet(keys, m.Block(row - item, item, [(dim, item), (heads, dim * item), (rows, 2 * row)]))


def test_more_dimensions_than_it_keeps_are_refused_or_coarse(simulator):
    m = simulator.module
    many = [(2, 3 ** (d + 1)) for d in range(12)]
    assert m.meets_itself(m.Block(0, 1, many))
    assert m.meet(m.Block(0, 1, many), m.Block(3, 1, []))
    assert not m.meet(m.Block(0, 1, many), m.Block(3**14, 1, []))
