"""The table of kernel resources reads ptxas's words and refuses a spill nobody explained."""

import subprocess

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
    fast, slow = tool.parse(SAID)
    assert fast == tool.Kernel("fast", "80", 32, 2560, 0, 0, 0)
    assert slow == tool.Kernel("slow", "80", 255, 0, 16, 44, 52)
    with pytest.raises(ValueError, match="cannot read ptxas's words"):
        tool.parse(SAID.replace("Used 255", "Took 255"))


def test_reads_a_build(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ARCHITECTURES", ["80"])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.cu.o.ptxas").write_text(SAID)
    assert tool.built(tmp_path, tool.ROOT / "a.cu") == tool.parse(SAID)
    with pytest.raises(SystemExit, match=r"has nothing of b\.cu for sm_80: make kernels"):
        tool.built(tmp_path, tool.ROOT / "b.cu")


def test_nvcc_is_logged(tmp_path):
    """The launcher hands on words and exit code, and keeps the words of what makes an object."""
    launcher, made = tool.ROOT / "tools" / "nvcc_logged.sh", tmp_path / "x.o"
    done = subprocess.run([launcher, "sh", "-c", "echo said; exit 0", "-o", made], capture_output=True, check=False)
    assert done.returncode == 0 and done.stderr == b"" and (tmp_path / "x.o.ptxas").read_text() == "said\n"
    done = subprocess.run([launcher, "sh", "-c", "echo bad; exit 3", "-o", made], capture_output=True, check=False)
    assert done.returncode == 3 and done.stderr == b"bad\n"
    done = subprocess.run([launcher, "sh", "-c", "echo version"], capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout == b"version\n"


def test_an_unexplained_spill_is_a_fault(monkeypatch):
    kernels = [k._replace(name=name) for k, name in zip(tool.parse(SAID), ("fast", "slow<4>"), strict=True)]
    assert tool.unexplained(kernels) == ["slow<4> on sm_80 spills 44 + 52 bytes"]
    monkeypatch.setitem(tool.EXPLAINED, ("slow", "80"), "because")
    assert tool.unexplained(kernels) == []
    text = tool.markdown({"a.cu": kernels}, ["80", "89"])
    assert "| a.cu | `fast` | 32 / 2560 | - |" in text
    assert "| a.cu | `slow<4>` | 255 / 0, spills 44 + 52 | - |" in text and "may spill: because" in text


def test_rows_of_other_sources_stay():
    kernels = [k._replace(name=name) for k, name in zip(tool.parse(SAID), ("fast", "slow"), strict=True)]
    whole = tool.markdown({"a.cu": kernels[:1], "b.cu": kernels[1:]}, ["80"])
    others = tool.rows_of_others(whole, {"b.cu"})
    assert list(others) == ["a.cu"] and tool.markdown({"b.cu": kernels[1:]}, ["80"], others) == whole
    changed = tool.markdown({"b.cu": kernels[:1]}, ["80"], others)
    assert "| a.cu | `fast` | 32 / 2560 |" in changed and "slow" not in changed


def test_names_are_readable():
    mangled = "_ZN7sparrow12_GLOBAL__N_116kv_commit_kernelI5uint4EEvNS_14KvCommitParamsE"
    assert tool.demangled([mangled]) == ["kv_commit_kernel<uint4>"]
