"""One process of the GPU checks: runs the cases of a part and reports each of them (bench/gpu_runner.py).

    python -m bench.gpu_worker PART      started by bench.gpu_check
    python -m bench.gpu_worker small     one small call of every timed case: what a sanitizer watches

SPARROW_REHEARSE=1: small, on the CPU.
"""

import importlib
import importlib.util
import json
import os
import re
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

LOST = re.compile(
    r"CUDA error|AcceleratorError|device-side assert|illegal (memory|instruction|address)|misaligned address"
)
LOST_CONTEXT = 75  # the exit code: every later call of this process would fail, too


class Skip(Exception):
    """A case that cannot run here; the words say why. It is not green."""


@dataclass(frozen=True)
class Case:
    """name and what runs it: returns facts for the result file, or raises (AssertionError, Skip, anything)."""

    name: str
    run: Callable[[], dict[str, Any] | None]


@dataclass(frozen=True)
class Place:
    """Where the cases run."""

    device: str
    small: bool

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"


class Report:
    """The pipe to the runner; prints where there is none."""

    def __init__(self) -> None:
        fd = os.environ.get("SPARROW_REPORT")
        self._out = sys.stdout if fd is None else os.fdopen(int(fd), "w")

    def _say(self, **line: Any) -> None:
        self._out.write(json.dumps(line, default=str) + "\n")
        self._out.flush()

    def begin(self, case: str) -> None:
        self._say(begin=case)

    def result(self, case: str, status: str, facts: dict[str, Any]) -> None:
        self._say(case=case, status=status, facts=facts)

    def complete(self) -> None:
        self._say(complete=True)


def run_cases(cases: Iterable[Case], over: set[str], report: Report) -> None:
    """Each case that is not `over`, in order; ends the process behind one that lost the CUDA context."""
    for case in cases:
        if case.name in over:
            continue
        report.begin(case.name)
        start, status, text = time.perf_counter(), "green", ""
        try:
            facts = case.run() or {}
        except Skip as skip:
            status, facts = "skipped", {"why": str(skip)}
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            status, facts = "red", {"why": f"{type(error).__name__}: {error}"[:400], "trace": text[-1500:]}
        report.result(case.name, status, {**facts, "seconds": round(time.perf_counter() - start, 2)})
        if LOST.search(text):
            os._exit(LOST_CONTEXT)
    report.complete()


def stand_in_for_av() -> None:
    """PyAV reads and writes video files, which no case does; where it is absent, its name is enough to be imported."""
    if importlib.util.find_spec("av") is not None:
        return
    module = types.ModuleType("av")
    module.__getattr__ = lambda name: type(name, (Exception,), {})  # type: ignore[method-assign]
    sys.modules["av"] = sys.modules["av.error"] = module


def main() -> int:
    place = Place("cpu", True) if os.environ.get("SPARROW_REHEARSE") else Place("cuda", False)
    stand_in_for_av()
    part = sys.argv[1]
    if part == "small":
        importlib.import_module("bench.gpu_bench").small(place)
        return 0
    over = set(json.load(sys.stdin))
    report = Report()
    if part == "operators":
        importlib.import_module("bench.gpu_tests").run(over, report)
    else:
        run_cases(importlib.import_module(f"bench.gpu_{part}").cases(place), over, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
