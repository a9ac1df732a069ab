"""GPU checks with planted workers: a fault costs one case, and the verdict is right in both directions."""

import json
import subprocess
import sys
import time

import pytest

from bench import gpu_check, gpu_sanitizer
from bench.gpu_check import PARTS, ROOT, take_up
from bench.gpu_runner import GREEN, RED, SKIPPED, Results, problems, run_part
from bench.gpu_worker import LOST, LOST_CONTEXT, Case, Place, Skip, run_cases

# A worker of four cases; what happens at "b" is planted.
WORKER = """
import json, os, sys, time, signal
over = json.load(sys.stdin)
out = os.fdopen(int(os.environ["SPARROW_REPORT"]), "w", buffering=1)
say = lambda **line: out.write(json.dumps(line) + "\\n")
for name in "abcd":
    if name in over:
        continue
    say(begin=name)
    if name == "b":
        {planted}
    say(case=name, status="green", facts={{"pid": os.getpid()}})
{end}
"""
COMPLETE = "say(complete=True)"


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path / "out.json", {"commit": "c", "rehearsal": True})


def run(results: Results, planted: str = "pass", end: str = COMPLETE, case: float = 20.0, limit: float = 60.0) -> float:
    """Seconds it took."""
    start = time.monotonic()
    command = [sys.executable, "-c", WORKER.format(planted=planted, end=end)]
    run_part(results, "part", command, case_limit=case, deadline=start + limit, settings={})
    return time.monotonic() - start


def statuses(results: Results) -> dict[str, str]:
    on_disk = json.loads(results.file.read_text())["parts"]["part"]["cases"]
    assert on_disk == results.parts["part"]["cases"]
    return {name: case["status"] for name, case in on_disk.items()}


def test_all_green(results):
    run(results)
    assert statuses(results) == dict.fromkeys("abcd", GREEN) and problems(results, ["part"]) == []


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
        ("sys.exit('out of luck')", "exit code 1: out of luck"),
        ("os.abort()", "exit code -6"),
        ("time.sleep(60)", "nothing heard for 2 s: killed"),
        ("os.fork() or time.sleep(60); time.sleep(60)", "nothing heard for 2 s: killed"),
    ],
)
def test_a_fault_costs_one_case(results, planted, words):
    assert run(results, planted, case=2.0) < 30
    assert statuses(results) == {"a": GREEN, "b": RED, "c": GREEN, "d": GREEN}
    cases = results.parts["part"]["cases"]
    assert words in cases["b"]["why"] and cases["a"]["pid"] != cases["c"]["pid"] == cases["d"]["pid"]
    assert len(problems(results, ["part"])) == 1


def test_a_lost_context_costs_one_case(results):
    lost = f'say(case="b", status="red", facts={{"why": "CUDA error"}}); os._exit({LOST_CONTEXT})'
    run(results, lost)
    assert statuses(results) == {"a": GREEN, "b": RED, "c": GREEN, "d": GREEN}


def test_a_worker_that_says_nothing_or_stops_early_is_not_green(results):
    run_part(results, "part", [sys.executable, "-c", "raise ImportError('no torch')"], case_limit=20.0,
             deadline=time.monotonic() + 60, settings={})  # fmt: skip
    assert statuses(results) == {"worker": RED} and "no torch" in problems(results, ["part"])[0]
    run(results, end="")  # it never says that it was through
    assert set(statuses(results).values()) == {GREEN, RED} and problems(results, ["part"])


def test_no_time_left_is_not_green(results):
    run(results, "time.sleep(60)", limit=2.0)
    assert statuses(results) == {"a": GREEN, "b": SKIPPED} and len(problems(results, ["part"])) == 2


def test_missing_empty_and_skipped_parts_are_not_green(results):
    assert problems(results, ["part"]) == ["part: not run"]
    run_part(results, "part", [sys.executable, "-c", "import os; os.write(int(os.environ['SPARROW_REPORT']), "
             "b'{\"complete\": true}\\n')"], case_limit=20.0, deadline=time.monotonic() + 60, settings={})  # fmt: skip
    assert problems(results, ["part"]) == ["part: no case ran"]
    results.put("part", "ptx wrappers", SKIPPED, {"why": "no nvcc"})
    assert problems(results, ["part"]) == ["part: ptx wrappers: skipped: no nvcc"]


def test_false_among_the_facts_is_no_verdict(results):
    results.put("environment", "versions", GREEN, {"dirty": False, "differs": False})
    results.complete("environment")
    assert problems(results, ["environment"]) == []


def test_resume_runs_what_is_not_green(results):
    run(results, "os.abort()")
    first = {name: case.get("pid") for name, case in results.parts["part"]["cases"].items()}
    again = Results(results.file, {"commit": "c", "rehearsal": True})
    take_up(again)
    run(again)
    cases = again.parts["part"]["cases"]
    assert problems(again, ["part"]) == [] and cases["a"]["pid"] == first["a"] and cases["b"]["pid"] != first["a"]
    with pytest.raises(SystemExit, match="is of commit c, this is other"):
        take_up(Results(results.file, {"commit": "other", "rehearsal": True}))


class Heard:
    """A Report that keeps what it is told."""

    def __init__(self):
        self.found: dict[str, str] = {}
        self.ended = False

    def begin(self, case):
        self.found[case] = "begun"

    def result(self, case, status, facts):
        self.found[case] = status

    def complete(self):
        self.ended = True


def raising(error: Exception):
    def run():
        raise error

    return run


def test_the_worker_tells_red_skipped_and_green_apart():
    heard = Heard()
    cases = [Case("over", raising(AssertionError())), Case("fine", dict), Case("wrong", raising(AssertionError("x"))),
             Case("cannot", raising(Skip("no nvcc")))]  # fmt: skip
    run_cases(cases, {"over"}, heard)
    assert heard.found == {"fine": GREEN, "wrong": RED, "cannot": SKIPPED} and heard.ended


def test_a_lost_context_ends_the_worker():
    text = "from bench.gpu_worker import *\ndef f(): raise RuntimeError('CUDA error: an illegal memory access')\n"
    text += "run_cases([Case('a', f), Case('b', dict)], set(), Report())"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == LOST_CONTEXT and '"red"' in done.stdout and '"b"' not in done.stdout
    assert not LOST.search("AssertionError: error 0.1 > 0.05")


@pytest.mark.parametrize(("code", "verdict"), [(0, GREEN), (9, RED), (3, RED), (None, SKIPPED)])
def test_sanitizers(monkeypatch, tmp_path, code, verdict):
    """Clean, dirty, broken, and not there."""
    tool = tmp_path / "compute-sanitizer"
    if code is not None:
        tool.write_text(f"#!/bin/sh\necho ERROR SUMMARY; exit {code}\n")
        tool.chmod(0o755)
    monkeypatch.setattr(gpu_sanitizer.shutil, "which", lambda *_, **__: str(tool) if code is not None else None)
    heard = Heard()
    run_cases([Case("memcheck", lambda: gpu_sanitizer.sanitized("memcheck", Place("cuda", False)))], set(), heard)
    assert heard.found == {"memcheck": verdict}


def test_the_parts_fit_their_time_and_have_a_module():
    assert sum(part.limit for part in PARTS.values()) > gpu_check.BUDGET  # limits are not shares: the budget ends it
    assert gpu_check.BUDGET < 480 and all(part.case < part.limit for part in PARTS.values())
    for name in PARTS:
        assert (ROOT / "bench" / f"gpu_{'tests' if name == 'operators' else name}.py").exists()


def test_dry_run_names_every_part(capsys):
    assert gpu_check.dry_run(list(PARTS)) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in PARTS) and "bench tree_attention: prefix 25000, N=8" in said
