"""GPU checks: a round at 7B shapes by bench/round.py, in a process of its own."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from bench.gpu_measure import ROOT
from bench.gpu_worker import Case, Place, Skip

VISUAL = (512, 1536, 6144, 25000, 100000)


def cases(place: Place) -> Iterator[Case]:
    for visual in VISUAL[:1] if place.small else VISUAL:
        yield Case(f"visual {visual}", lambda v=visual: rounds(place, v))


def rounds(place: Place, visual: int) -> dict[str, Any]:
    """What bench.round measures at one visual length: plain and drafted."""
    if importlib.util.find_spec("bench.round") is None:
        raise Skip("there is no bench/round.py")
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/round.json"
        command = [sys.executable, "-m", "bench.round", "--device", place.device, "--visual", str(visual), "--out", out]
        if place.small:
            command.append("--small")
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-800:]}"
        with open(out) as file:
            return {"round": json.load(file)}
