"""The table of kernel resources reads ptxas's words and refuses a spill nobody explained."""

import pytest

from tools import kernel_resources as tool

SAID = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7sparrow4fastEv' for 'sm_80'
ptxas info    : Function properties for _ZN7sparrow4fastEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 2560 bytes smem, 432 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN7sparrow4slowEv' for 'sm_80'
ptxas info    : Function properties for _ZN7sparrow4slowEv
    16 bytes stack frame, 44 bytes spill stores, 52 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


def test_reads_ptxas():
    fast, slow = tool.parse(SAID, "80")
    assert fast == tool.Kernel("_ZN7sparrow4fastEv", "80", 32, 2560, 0, 0, 0)
    assert slow == tool.Kernel("_ZN7sparrow4slowEv", "80", 255, 0, 16, 44, 52)
    with pytest.raises(ValueError, match="cannot read ptxas's words"):
        tool.parse(SAID.replace("Used 255", "Took 255"), "80")


def test_an_unexplained_spill_is_a_fault(monkeypatch):
    kernels = [k._replace(name=name) for k, name in zip(tool.parse(SAID, "80"), ("fast", "slow<4>"), strict=True)]
    assert tool.unexplained(kernels) == ["slow<4> on sm_80 spills 44 + 52 bytes"]
    monkeypatch.setitem(tool.EXPLAINED, ("slow", "80"), "because")
    assert tool.unexplained(kernels) == []
    text = tool.markdown({"a.cu": kernels}, ["80", "89"])
    assert "| a.cu | `fast` | 32 / 2560 | - |" in text
    assert "| a.cu | `slow<4>` | 255 / 0, spills 44 + 52 | - |" in text and "may spill: because" in text


def test_rows_of_other_sources_stay():
    kernels = [k._replace(name=name) for k, name in zip(tool.parse(SAID, "80"), ("fast", "slow"), strict=True)]
    whole = tool.markdown({"a.cu": kernels[:1], "b.cu": kernels[1:]}, ["80"])
    others = tool.rows_of_others(whole, {"b.cu"})
    assert list(others) == ["a.cu"] and tool.markdown({"b.cu": kernels[1:]}, ["80"], others) == whole
    changed = tool.markdown({"b.cu": kernels[:1]}, ["80"], others)
    assert "| a.cu | `fast` | 32 / 2560 |" in changed and "slow" not in changed


def test_names_are_readable():
    mangled = "_ZN7sparrow12_GLOBAL__N_116kv_commit_kernelI5uint4EEvNS_14KvCommitParamsE"
    assert tool.demangled([mangled]) == ["kv_commit_kernel<uint4>"]
