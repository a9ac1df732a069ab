import pytest
import torch

from sparrow_ext.ops import rope_append as op
from tests.ops.attention_cases import ints
from tests.ops.checks import DTYPES, assert_close64
from tests.ops.test_rope_append import case, copies

# B, N, H, K, D; 20 and 2: no 16-byte moves
SHAPES = [(1, 1, 7, 1, 128), (3, 9, 4, 2, 64), (2, 17, 3, 3, 20), (1, 128, 2, 1, 16), (1, 3, 2, 2, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(sim, shape, dtype):
    args = case(shape, dtype)
    before, same, exact = copies(args), copies(args), copies(args, torch.float64)
    op.reference(*same)
    op.reference(*exact)
    sim.ops.rope_append(*args)
    for i, what in [(0, "q"), (5, "k_cache"), (6, "v_cache")]:
        assert_close64(args[i], same[i], exact[i], what)
        if dtype == torch.float32:
            assert torch.equal(args[i], same[i]), what
    for i in (1, 2, 3, 4):
        assert torch.equal(args[i], before[i])
    op.rope_append(*before)
    for i in (0, 5, 6):
        assert torch.equal(args[i], before[i]), "not the CPU kernel's bits"


def test_the_later_of_two_stays_and_bad_slots_append_nothing(sim):
    q, k, v, cos_sin, slots, kc, vc = case((1, 6, 2, 1, 16), torch.float32)
    slots.copy_(ints(2, 4, 2, -5, kc.shape[1], 2**31 - 1))
    before = vc.clone()
    sim.ops.rope_append(q, k, v, cos_sin, slots, kc, vc)
    assert torch.equal(vc[0, 2], v[0, 2]) and torch.equal(vc[0, 4], v[0, 1])
    kept = [i for i in range(vc.shape[1]) if i not in (2, 4)]
    assert torch.equal(vc[0, kept], before[0, kept])


def test_misaligned_rows_and_empty(sim):
    q, k, v, cos_sin, slots, kc, vc = case((1, 2, 2, 1, 16), torch.bfloat16)
    shifted = torch.zeros(kc.numel() + 1, dtype=kc.dtype)[1:].view(kc.shape)
    sim.ops.rope_append(q.clone(), k, v, cos_sin, ints(0, 3)[None], shifted, vc)
    sim.ops.rope_append(q, k, v, cos_sin, ints(0, 3)[None], kc, vc)
    assert torch.equal(shifted[0, [0, 3]], kc[0, [0, 3]])
    sim.ops.rope_append(*(x[:, :0] for x in (q, k, v, cos_sin, slots)), kc, vc)
