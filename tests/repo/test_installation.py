"""What a clone installs and builds: the lock file, the choice of torch, the architectures, and what is said of it."""

import contextlib
import json
import os
import pathlib
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from packaging.requirements import Requirement

import sparrow_ext
from sparrow.cli import doctor
from sparrow.cli.arguments import Doctor
from sparrow.targets.versions import TESTED
from sparrow_ext import _library
from sparrow_ext._machine import has_gpu

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
]


def requirements() -> list[Requirement]:
    """All that `make setup`, `make test` and `make check` ask for."""
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    return [Requirement(line) for line in lines + extras["train"] + extras["test"] + extras["dev"]]


def test_tested_ranges_are_those_of_the_package():
    ranges = {r.name: r.specifier for r in requirements()}
    assert {name: ranges[name] for name in TESTED} == TESTED


@pytest.mark.parametrize("wanted", requirements(), ids=str)
def test_every_requirement_is_locked_within_its_range(wanted):
    locked = [r for r in LOCK if r.name == wanted.name]
    assert locked, f"{wanted} is not in requirements.lock: make lock"
    for line in locked:
        (pin,) = line.specifier
        assert pin.operator == "==" and wanted.specifier.contains(pin.version), f"make lock: {line} is not {wanted}"


def test_the_lock_holds_exact_versions_for_every_python():
    assert all([s.operator for s in r.specifier] == ["=="] for r in LOCK)
    for python in ("3.10", "3.11", "3.12", "3.13"):
        environment = {
            "python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux",
            "platform_machine": "x86_64", "platform_python_implementation": "CPython",
        }  # fmt: skip
        here = [r.name for r in LOCK if not r.marker or r.marker.evaluate(environment)]
        assert len(here) == len(set(here)) and {r.name for r in requirements()} <= set(here), python


def installer(monkeypatch, gpu: bool, answers: bool) -> dict:
    module = runpy.run_path(str(ROOT / "tools" / "install_torch.py"))
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    module["index"].__globals__.update(has_gpu=lambda: gpu, reachable=lambda url: answers)
    return module


@pytest.mark.parametrize(
    ("gpu", "answers", "url", "why"),
    [
        (True, True, None, "this machine has a GPU"),
        (False, True, "https://download.pytorch.org/whl/cpu", "no GPU is here"),
        (False, False, None, "cannot be reached"),
    ],
)
def test_which_torch_is_installed(monkeypatch, gpu, answers, url, why):
    module = installer(monkeypatch, gpu, answers)
    found, reason = module["index"]()
    assert found == url and why in reason
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/whl")
    assert module["index"]()[0] == "https://example.org/whl"


def test_an_index_that_does_not_answer_costs_seconds(monkeypatch):
    module = runpy.run_path(str(ROOT / "tools" / "install_torch.py"))
    reachable = module["reachable"]
    reachable.__globals__["PATIENCE"] = 0.5
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url, start = f"http://127.0.0.1:{silent.getsockname()[1]}", time.monotonic()
        assert not reachable(url)
        assert time.monotonic() - start < 2
    assert not reachable(url)  # refused


def test_an_index_that_answers(monkeypatch):
    asked = []

    class Index(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        module = runpy.run_path(str(ROOT / "tools" / "install_torch.py"))
        assert module["reachable"](f"http://127.0.0.1:{server.server_port}/whl/cpu")
    assert asked == ["/whl/cpu/torch/"]


CMAKE = """#!/bin/sh
for word; do
  echo "$word" >> arguments
  case $word in -DSPARROW_OUTPUT_DIR=*) mkdir -p "${word#*=}"; touch "${word#*=}/libsparrow.so";; esac
done
"""


def configured(folder: pathlib.Path, gpu: bool, *options: str, **environment: str) -> set[str]:
    """What setup.py hands to CMake, in a copy of it with stand-ins for cmake and nvidia-smi on the PATH."""
    shutil.copytree(ROOT / "sparrow_ext", folder / "sparrow_ext", ignore=shutil.ignore_patterns("*.so"))
    shutil.copytree(ROOT / "tools", folder / "tools")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "python").mkdir()
    for name, text in (
        ("cmake", CMAKE),
        ("nvidia-smi", "#!/bin/sh\necho GPU 0: some GPU" if gpu else "#!/bin/sh\nexit 9"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if k not in ("SPARROW_CUDA", "CMAKE_CUDA_ARCHITECTURES")}
    inherited |= {"PATH": f"{folder}:{os.environ['PATH']}", **environment}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", *options], cwd=folder, env=inherited, check=True)
    return set((folder / "arguments").read_text().splitlines())


@pytest.mark.parametrize(
    ("gpu", "options", "environment", "cuda", "architectures"),
    [
        (False, ["--inplace"], {}, "AUTO", "-UCMAKE_CUDA_ARCHITECTURES"),
        (True, ["--inplace"], {}, "AUTO", "-DCMAKE_CUDA_ARCHITECTURES=native"),
        (True, ["--inplace"], {"SPARROW_CUDA": "OFF"}, "OFF", "-DCMAKE_CUDA_ARCHITECTURES=native"),
        (True, ["--inplace"], {"CMAKE_CUDA_ARCHITECTURES": "80"}, "AUTO", "-DCMAKE_CUDA_ARCHITECTURES=80"),
        (True, [], {}, "AUTO", "-UCMAKE_CUDA_ARCHITECTURES"),
    ],
    ids=["no GPU", "GPU", "CUDA off", "as asked", "a wheel"],
)
def test_architectures_of_a_build(tmp_path, gpu, options, environment, cuda, architectures):
    if not gpu and has_gpu():
        pytest.skip("this machine has a GPU")
    arguments = configured(tmp_path, gpu, *options, **environment)
    said = {a for a in arguments if "CMAKE_CUDA_ARCHITECTURES" in a or "SPARROW_CUDA" in a}
    assert said == {f"-DSPARROW_CUDA={cuda}", architectures}


@pytest.mark.parametrize(
    ("kernels", "cuda", "gpu", "said", "loud"),
    [
        (True, "13.0", True, "and CUDA kernels", None),
        (False, "13.0", False, "found no nvcc", None),
        (False, None, False, "is a CPU build", None),
        (False, "13.0", True, "found no nvcc", "install the CUDA toolkit (nvcc), then pip install -e ."),
        (False, None, True, "is a CPU build", "install a CUDA build of torch, then pip install -e ."),
    ],
)
def test_build_report(monkeypatch, kernels, cuda, gpu, said, loud):
    monkeypatch.setattr(_library, "has_cuda_kernels", lambda: kernels)
    monkeypatch.setattr(_library, "has_gpu", lambda: gpu)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    first, *more = sparrow_ext.build_report().splitlines()
    assert first.startswith(f"built: CPU kernels ({sparrow_ext.cpu_isa()})") and said in first
    assert bool(more) == bool(loud)
    assert not loud or (more[0].startswith("WARNING: THIS MACHINE HAS A GPU") and loud in more[0])
    steps = doctor._next(True, True, Doctor())
    assert (more[0] in steps) if loud else not any("GPU" in line for line in steps)


REPORT = json.dumps({"install": [{"metadata": {"name": "transformers", "version": "9.1"}}]})
FAILURE = "E   TypeError: no cache\nFAILED tests/test_lossless.py::test_x - TypeError: no cache\n1 failed"


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        (
            [(1, "", "WARNING: retrying\nERROR: No matching distribution")],
            "not checked (ERROR: No matching distribution)",
        ),
        ([(0, '{"install": []}', "")], "none (the newest transformers is the one that was tested)"),
        ([(0, REPORT, ""), (1, "", "")], "not checked (pip cannot install transformers==9.1)"),
        ([(0, REPORT, ""), (0, "", ""), (0, "31 passed", "")], "none (under transformers==9.1)"),
        (
            [(0, REPORT, ""), (0, "", ""), (1, FAILURE, "")],
            "under transformers==9.1: FAILED tests/test_lossless.py::test_x - TypeError: no cache",
        ),
        ([(0, REPORT, ""), (0, "", ""), (2, "", "")], "under transformers==9.1: the run ended early"),
        ([None], "not checked (more than 90 s: -m pip install ...)"),
    ],
)
def test_drift_is_one_line(steps, line):
    drift = runpy.run_path(str(ROOT / "tools" / "versions.py"))["drift"]
    script = iter(steps)

    def run(*command, timeout, check, **more):
        if (step := next(script)) is None:
            raise subprocess.TimeoutExpired([str(c) for c in command], timeout)
        return subprocess.CompletedProcess(command, *step)

    drift.__globals__["run"] = run
    assert drift() == line and next(script, None) is None


def test_readme_has_the_table_of_tested_versions():
    """`python tools/versions.py --table` prints it."""
    module = runpy.run_path(str(ROOT / "tools" / "versions.py"))
    assert module["table"]() in (ROOT / "README.md").read_text()
    runs = json.loads(module["RESULT"].read_text())["runs"]
    asked = {(run["asked"]["torch"], run["asked"]["transformers"]) for run in runs}
    assert asked == {(torch, release) for torch, releases in module["COMBINATIONS"].items() for release in releases}
