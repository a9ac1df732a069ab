"""A missing or unloadable library is one clear ImportError; a missing CUDA kernel one clear RuntimeError."""

import inspect
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch

import sparrow_ext
from sparrow_ext import _library
from sparrow_ext.ops import argmax_rows, tree_mask
from tests.ops.checks import available_isas

PACKAGE = pathlib.Path(sparrow_ext.__file__).parent


def import_copy(folder: pathlib.Path, library: bytes | None) -> str:
    """`import sparrow_ext` in a process of its own, from a copy of the package with this library; its stderr."""
    shutil.copytree(PACKAGE, folder / "sparrow_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if library is not None:
        (folder / "sparrow_ext" / "libsparrow.so").write_bytes(library)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", "import sparrow_ext"]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    return done.stderr


def test_missing_library(tmp_path):
    message = import_copy(tmp_path, None).splitlines()[-1]
    assert message.startswith("ImportError: sparrow's operators are not built: ")
    assert str(tmp_path) in message and "libsparrow.so is missing" in message
    assert message.endswith(f"Build them: {_library.BUILD_COMMAND}")


@pytest.mark.parametrize("content", ["text", "another machine's"])
def test_unloadable_library(content, tmp_path):
    library = bytearray(b"not a library" if content == "text" else _library.LIBRARY.read_bytes())
    if content != "text":
        library[18:20] = b"\xff\x7f"  # e_machine in the ELF header
    message = import_copy(tmp_path, bytes(library)).splitlines()[-1]
    assert message.startswith("ImportError: sparrow's operators cannot be loaded: ")
    assert str(tmp_path / "sparrow_ext" / "libsparrow.so") in message  # the loader's own words name the file
    assert message.endswith(f"Rebuild them: {_library.BUILD_COMMAND}")


def test_cuda_tensor_without_cuda_kernels(monkeypatch):
    monkeypatch.setattr(_library, "has_cuda_kernels", lambda op="tree_mask": False)
    with torch._subclasses.FakeTensorMode():
        parent = torch.empty(1, 3, dtype=torch.int32, device="cuda")
        logits = torch.empty(1, 3, device="cuda")
    message = r"built without CUDA kernels: SPARROW_CUDA=ON pip install -e \."
    with pytest.raises(RuntimeError, match=rf"sparrow\.tree_mask: {message}"):
        tree_mask.tree_mask(parent)
    with pytest.raises(RuntimeError, match=rf"sparrow\.argmax_rows: {message}"):
        argmax_rows.argmax_rows(logits)


def test_cuda_kernels_are_looked_up_by_name():
    assert isinstance(_library.has_cuda_kernels("tree_mask"), bool)
    with pytest.raises(RuntimeError, match="no_such_operator does not exist"):
        _library.has_cuda_kernels("no_such_operator")


def test_the_default_instruction_set_is_the_fastest_one():
    """In a process of its own; Intel's instruction for bfloat16 is slower than none."""
    ask = "import sparrow_ext; print(sparrow_ext.cpu_isa())"
    used = subprocess.run([sys.executable, "-c", ask], check=True, text=True, capture_output=True).stdout.strip()
    about = pathlib.Path("/proc/cpuinfo").read_text()
    widest = available_isas()[-1]
    assert used == ("avx512" if widest == "avx512_bf16" and "GenuineIntel" in about else widest)


def test_unknown_instruction_set():
    before = sparrow_ext.cpu_isa()
    said = "name must be generic, avx2, avx512 or avx512_bf16 and supported by this CPU, got sse9"
    with pytest.raises(RuntimeError, match=said):
        sparrow_ext.set_cpu_isa("sse9")
    assert sparrow_ext.cpu_isa() == before


def test_public_names():
    for name in sparrow_ext.__all__:
        assert inspect.getdoc(getattr(sparrow_ext, name)), f"sparrow_ext.{name} has no docstring"
