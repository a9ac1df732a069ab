"""The adapters to other libraries, against stand-ins with the published signatures: no GPU, no such library needed.

What a stand-in checks is that the adapter hands over the right shapes, masks and names; not that the library agrees.
"""

import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import gpu_measure, gpu_peers
from bench.gpu_work import Work
from sparrow_ext.ops import tree_accept, tree_attention, tree_mask
from tests.ops.checks import random_tree

RATES: dict[str, float | str] = {"read_GB_per_s": 4000.0, "bf16_TFLOP_per_s": 800.0}
PREFIX, NODES, HEADS, KV_HEADS, DIM = 37, 9, 6, 2, 16


@pytest.fixture
def problem():
    """q [1, N, H, D], two caches [1, S, K, D] in heads-first buffers, visible [1, N, S], and the right results."""
    g = torch.Generator().manual_seed(0)
    q = torch.randn(1, NODES, HEADS, DIM, generator=g)
    buffers = [torch.randn(2, 1, KV_HEADS, PREFIX + NODES, DIM, generator=g) for _ in range(2)]
    caches = [(b[0].transpose(1, 2), b[1].transpose(1, 2)) for b in buffers]
    anc = tree_mask.tree_mask(random_tree(NODES, g)[None])[0]
    lens = torch.tensor([PREFIX], dtype=torch.int32)
    visible = tree_attention.visibility(lens, None, anc, NODES, PREFIX + NODES)
    return q, caches, visible, [tree_attention.eager(q, *c, visible) for c in caches]


def packbits(x, bitorder):
    assert bitorder == "little" and x.dtype == torch.bool and x.dim() == 1
    bits = F.pad(x, (0, -len(x) % 8)).view(-1, 8).int()
    return (bits << torch.arange(8)).sum(1).to(torch.uint8)


def single_prefill_with_kv_cache(q, k, v, *, packed_custom_mask, kv_layout):
    assert kv_layout == "HND" and packed_custom_mask.dtype == torch.uint8
    rows = k.shape[1]
    bits = (packed_custom_mask[:, None].int() >> torch.arange(8)) & 1
    mask = bits.flatten()[: q.shape[0] * rows].view(q.shape[0], rows).bool()
    return F.scaled_dot_product_attention(q.transpose(0, 1), k, v, mask, enable_gqa=True).transpose(0, 1)


def test_flashinfer(problem):
    q, caches, visible, want = problem
    module = SimpleNamespace(packbits=packbits, single_prefill_with_kv_cache=single_prefill_with_kv_cache)
    for call, expected in zip(gpu_peers.flashinfer_tree(module, q, caches, visible), want, strict=True):
        torch.testing.assert_close(call(), expected[0])


class BlockDiagonalPaddedKeysMask:
    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen, kv_padding):
        assert q_seqlen == [NODES] and kv_seqlen == [PREFIX] and kv_padding == PREFIX
        return cls()


def xformers_tree_attention(q, spec_k, spec_v, cache_k, cache_v, spec_attn_bias, prefix_attn_bias):
    assert isinstance(prefix_attn_bias, BlockDiagonalPaddedKeysMask) and q.shape[2:] == spec_k.shape[2:]
    assert cache_k.shape == (1, PREFIX, KV_HEADS, HEADS // KV_HEADS, DIM) and spec_attn_bias.shape == (NODES, NODES)
    k, v = torch.cat((cache_k, spec_k), 1), torch.cat((cache_v, spec_v), 1)
    bias = F.pad(spec_attn_bias, (PREFIX, 0))
    heads_first = (x.permute(0, 2, 3, 1, 4) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, bias).permute(0, 3, 1, 2, 4)


def test_xformers(problem, monkeypatch):
    q, caches, visible, want = problem
    bias = ModuleType("xformers.ops.fmha.attn_bias")
    bias.BlockDiagonalPaddedKeysMask = BlockDiagonalPaddedKeysMask
    for name in ("xformers", "xformers.ops", "xformers.ops.fmha"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, bias.__name__, bias)
    module = SimpleNamespace(tree_attention=xformers_tree_attention)
    for call, expected in zip(gpu_peers.xformers_tree(module, q, caches, PREFIX, visible), want, strict=True):
        torch.testing.assert_close(call().reshape(expected.shape), expected)


def verify_tree_greedy(
    predicts, accept_index, accept_token_num, candidates, retrive_index, retrive_next_token, retrive_next_sibling,
    target_predict,
):  # fmt: skip
    """What sglang's kernel does, for a batch of one."""
    assert predicts.dtype == accept_index.dtype == accept_token_num.dtype == torch.int32
    assert retrive_index.tolist() == [list(range(candidates.shape[1]))]
    at, path = 0, [0]
    while len(path) < accept_index.shape[1]:
        below = int(retrive_next_token[0, at])
        while below >= 0 and candidates[0, below] != target_predict[0, at]:
            below = int(retrive_next_sibling[0, below])
        if below < 0:
            break
        at = below
        path.append(at)
    accept_index[0, : len(path)] = torch.tensor(path, dtype=torch.int32)
    accept_token_num[0] = len(path) - 1


@pytest.mark.parametrize("seed", range(5))
def test_sglang(seed):
    g = torch.Generator().manual_seed(seed)
    parent = random_tree(40, g)[None]
    tokens, target = (torch.randint(0, 2, (1, 40), generator=g) for _ in range(2))
    module = SimpleNamespace(verify_tree_greedy=verify_tree_greedy)
    (call,) = gpu_peers.sglang_accept(module, tokens, parent, target, 7)
    count, path = call()
    want = tree_accept.reference(tokens, parent, target, None, 7)
    assert torch.equal(count + 1, want[0]) and torch.equal(path, want[1])


def test_links():
    assert gpu_peers.links([-1, 0, 0, 1, 0]) == ([1, 3, -1, -1, -1], [-1, 2, 4, -1, -1])


def test_missing_and_broken_libraries_are_named(monkeypatch):
    assert gpu_peers.load("no_such_library_here.part", lambda m: []) == "not installed"
    assert gpu_peers.load("json.no_such_part", lambda m: []).startswith("ModuleNotFoundError: No module named 'json.no")
    assert gpu_peers.load("json", lambda m: m.attend()).startswith("AttributeError: module 'json' has no attribute")
    work = Work([], 1)
    work.add("a", "not installed")
    work.add("b", gpu_peers.load("json", lambda m: [m.dumps]))
    assert work.missing == {"a": "not installed"} and list(work.peers) == ["b"]


def test_floors_name_both_rates():
    work = Work([], bytes=4_000_000, flops=2_000_000_000)
    assert gpu_measure.floors(work, RATES, 5.0) == {"floor_us": 2.5, "share_of_floor": 0.5}
    both = gpu_measure.floors(work, RATES | {"mma_sync_TFLOP_per_s": 400.0}, 5.0)
    assert both["mma_floor_us"] == 5.0 and both["share_of_mma_floor"] == 1.0 and both["floor_us"] == 2.5


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("arch", ["80", "90a"])
def test_mma_ceiling_builds(arch):
    run = gpu_measure.compiled(gpu_measure.ROOT / "bench" / "mma_ceiling.cu", arch)
    if torch.cuda.is_available():
        pytest.skip("built; its rate is gpu_check's to measure")
    with pytest.raises(subprocess.CalledProcessError):  # it says that there is no GPU, and prints no rate
        run()


def test_a_ceiling_that_cannot_be_measured_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setenv("PATH", "")
    found = gpu_measure.mma_ceiling()
    assert list(found) == ["mma_sync missing"] and "nvcc" in found["mma_sync missing"]
    assert "share_of_mma_floor" not in gpu_measure.floors(Work([], 1), found | RATES, 1.0)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_what_nvcc_refuses_is_said(tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text("int main() { return no_such_name; }")
    with pytest.raises(RuntimeError, match=r"nvcc cannot build broken.cu: .*no_such_name"):
        gpu_measure.compiled(source, "80")


def test_operators_are_found():
    assert {"tree_mask", "kv_commit", "sample_rows"} <= set(gpu_measure.operators())
