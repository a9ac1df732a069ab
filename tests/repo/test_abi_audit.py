"""The audit of the built library sees each of the faults it is there for."""

import shutil

import pytest

from sparrow_ext._library import LIBRARY
from tools import abi_audit

GOOD = """
                 U aoti_torch_get_dim
                 U torch_call_dispatcher
                 U memcpy@GLIBC_2.14
                 U _Znwm@GLIBCXX_3.4
                 w __gmon_start__
                 w aoti_torch_get_current_cuda_stream
"""
DYNAMIC = " 0x1 (NEEDED)  Shared library: [libtorch.so]\n 0x1 (NEEDED)  Shared library: [libc.so.6]\n"


def test_good_library():
    assert abi_audit.library_faults(GOOD, DYNAMIC) == []
    assert abi_audit.newest(GOOD + " U pow@GLIBC_2.9\n", "GLIBC") == "2.14"


@pytest.mark.parametrize(
    "symbol",
    [
        "U _ZN2at6Tensor3addERKS0_",
        "U _ZN3c105ErrorC1Ev",
        "w _ZN3c105ErrorC1Ev",
        "U PyObject_Call",
        "U aoti_torch_get_current_cuda_stream",
        "U cudaLaunchKernel",
    ],
)
def test_forbidden_symbols(symbol):
    (fault,) = abi_audit.library_faults(f"{GOOD}                 {symbol}\n", DYNAMIC)
    assert symbol.split()[1] in fault


@pytest.mark.parametrize("library", ["libpython3.11.so.1.0", "libcudart.so.13", "libc10.so"])
def test_forbidden_libraries(library):
    (fault,) = abi_audit.library_faults(GOOD, DYNAMIC + f" 0x1 (NEEDED)  Shared library: [{library}]\n")
    assert library in fault
    assert abi_audit.library_faults(GOOD, "") != []


def test_symbols_shared_between_instruction_sets():
    nm = """
0000000000000000 T _ZN7sparrow6avx51213tree_mask_cpuERKNS_14TreeMaskParamsEll
0000000000000000 W _ZN7sparrow6avx5124pickIfEEvv
0000000000000000 W _ZSt3maxIfERKT_S2_S2_
0000000000000000 u _ZZN7sparrow6chosenEvE3isa
0000000000000000 t _ZN12_GLOBAL__N_13runEv
                 U memcpy
"""
    strays = ["_ZSt3maxIfERKT_S2_S2_", "_ZZN7sparrow6chosenEvE3isa"]
    assert abi_audit.stray_symbols(nm, "avx512") == strays
    assert abi_audit.stray_symbols(nm, "avx2") == ["_ZN7sparrow6avx5124pickIfEEvv", *strays]


@pytest.mark.skipif(not (shutil.which("nm") and shutil.which("readelf")), reason="needs binutils")
def test_this_library():
    nm = abi_audit.run("nm", "-D", "--undefined-only", str(LIBRARY))
    assert abi_audit.library_faults(nm, abi_audit.run("readelf", "-d", str(LIBRARY))) == []
