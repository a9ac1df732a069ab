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


def serve(folder: pathlib.Path, *argv: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "python")])
    return subprocess.run(
        [sys.executable, "-m", "sparrow", "serve", *argv], text=True, capture_output=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.fixture
def said(tmp_path):
    """A folder with a vLLM in it that prints its arguments and exits with 7."""
    module = tmp_path / "vllm" / "entrypoints" / "cli"
    module.mkdir(parents=True)
    (module / "main.py").write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(7)\n")
    return tmp_path


def test_it_becomes_what_it_prints(said):
    done = serve(said, TARGET, "--drafter", DRAFTER, "--length", "3", "--vllm-args", "--port 8001 --api-key 'a b'")
    assert done.returncode == 7, done.stderr
    printed, ran = done.stdout.splitlines()
    words = json.loads(ran)
    assert shlex.split(printed) == ["vllm", *words]
    assert words[:3] == ["serve", TARGET, "--speculative-config"] and words[-4:] == [
        "--port",
        "8001",
        "--api-key",
        "a b",
    ]
    assert json.loads(words[3]) == {
        "method": "custom_class", "model": "sparrow.engines.vllm.SparrowProposer", "num_speculative_tokens": 3
    }  # fmt: skip
    assert json.loads(words[5]) == {"sparrow": {"drafter": DRAFTER}}


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
    done = serve(said, TARGET, *argv)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()

    assert re.search(message, line)


def test_without_vllm(tmp_path):
    done = serve(tmp_path, TARGET, "--drafter", DRAFTER)
    assert done.returncode == 1 and done.stderr.startswith("sparrow: vLLM is not installed here: pip install")
