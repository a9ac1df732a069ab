"""Runs a part of the GPU checks in processes of its own, and keeps what they report. Needs no torch.

A worker reports through a pipe, a JSON line each: {"begin": case}, {"case": case, "status": ..., "facts": ...}, and at
its end {"complete": true}. Every result is on disk before the next case begins. A worker that loses its CUDA context,
hangs or is killed costs the case it was at: another process takes up the rest.
"""

import json
import os
import pathlib
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from sparrow.files import write_json

GREEN, RED, SKIPPED = "green", "red", "skipped"
MOST_PROCESSES = 12  # of one part: more lost contexts than that are no accident


@dataclass
class Results:
    """The result file: whole at any time.

    Attributes:
        file: where it lies.
        head: what holds for all parts: command, commit, hardware, versions.
        parts: part -> {"complete": every case had its turn, "cases": {case: {"status", "seconds", facts}}}.
    """

    file: pathlib.Path
    head: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Any]:
        return self.parts.setdefault(name, {"complete": False, "cases": {}})

    def put(self, part: str, case: str, status: str, facts: dict[str, Any]) -> None:
        self.part(part)["cases"][case] = {"status": status, **facts}
        self.save()
        words = facts.get("why") or facts.get("says") or ""
        if status != GREEN or words:
            print(f"  {status:7s} {part}: {case}  {words}"[:200], flush=True)

    def complete(self, part: str) -> None:
        self.part(part)["complete"] = True
        self.save()

    def save(self) -> None:
        write_json(self.file, {**self.head, "parts": self.parts})

    def green(self, part: str) -> dict[str, Any]:
        """The cases that need no other run."""
        return {name: case for name, case in self.part(part)["cases"].items() if case["status"] == GREEN}


def problems(results: Results, wanted: list[str]) -> list[str]:
    """Why this is not green, a line each: parts and cases that are red, were skipped, or did not have their turn."""
    found = []
    for name in wanted:
        part = results.parts.get(name)
        if part is None:
            found.append(f"{name}: not run")
            continue
        for case, row in part["cases"].items():
            if row["status"] != GREEN:
                found.append(f"{name}: {case}: {row['status']}: {row.get('why', '')}")
        if not part["complete"]:
            found.append(f"{name}: incomplete")
        elif not part["cases"]:
            found.append(f"{name}: no case ran")
    return found


@dataclass
class Ended:
    """How a worker ended.

    Attributes:
        complete: it said that it was through.
        reported: results that came.
        case: the one it was at, or None.
        why: words for that case.
    """

    complete: bool
    reported: int
    case: str | None
    why: str


def run_part(
    results: Results, part: str, command: list[str], *, case_limit: float, deadline: float, settings: dict[str, str]
) -> None:
    """All cases of a part, by as many workers as it takes.

    Args:
        command: starts a worker. It reads the names of the cases to leave out from its standard input, a JSON list, and
            reports to the file descriptor in the environment variable SPARROW_REPORT.
        case_limit: seconds without a word from it, after which it hangs.
        deadline: of time.monotonic(), for the whole part.
        settings: more of the worker's environment.
    """
    kept = results.green(part)
    results.parts[part] = {"complete": False, "cases": kept}
    over = set(kept)  # these had their turn
    for _ in range(MOST_PROCESSES):
        if time.monotonic() >= deadline:
            return results.put(part, "the rest", SKIPPED, {"why": "no time left"})
        ended = _one_process(results, part, command, over, case_limit, deadline, settings)
        if ended.complete:
            return results.complete(part)
        if time.monotonic() >= deadline:
            case = ended.case or "the rest"
            return results.put(part, case, SKIPPED, {"why": "no time left"})
        if ended.case is not None:
            over.add(ended.case)
            results.put(part, ended.case, RED, {"why": ended.why})
        elif ended.reported == 0:
            return results.put(part, "worker", RED, {"why": ended.why})
    return results.put(part, "the rest", RED, {"why": f"{MOST_PROCESSES} processes ended before their time"})


def _one_process(
    results: Results,
    part: str,
    command: list[str],
    over: set[str],
    case_limit: float,
    deadline: float,
    settings: dict[str, str],
) -> Ended:
    log = results.file.with_name(f"{results.file.stem}.{part}.log")
    read, write = os.pipe()
    with log.open("ab") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, pass_fds=(write,),
            start_new_session=True, env={**os.environ, **settings, "SPARROW_REPORT": str(write)},
        )  # fmt: skip
    os.close(write)
    ended, silent = Ended(False, 0, None, ""), True
    try:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(sorted(over)).encode())
            child.stdin.close()
        except BrokenPipeError:
            pass  # it ended at once: its exit code says more
        silent = _listen(results, part, read, over, ended, case_limit, deadline)
    finally:
        os.close(read)
        _end(child, 0.0 if silent else 10.0)
    if silent:
        ended.why = f"nothing heard for {case_limit:.0f} s: killed"
    else:
        ended.why = f"its process ended with exit code {child.returncode}: {_last_line(log)}"
    return ended


def _listen(
    results: Results, part: str, read: int, over: set[str], ended: Ended, case_limit: float, deadline: float
) -> bool:
    """Takes in what a worker reports until its end; True where it fell silent."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(read, selectors.EVENT_READ)
        while not ended.complete:
            wait = min(case_limit, deadline - time.monotonic())
            if wait <= 0 or not selector.select(wait):
                return True
            data = os.read(read, 1 << 16)
            if not data:
                return False
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _take(results, part, json.loads(line), over, ended)
    return False


def _take(results: Results, part: str, said: dict[str, Any], over: set[str], ended: Ended) -> None:
    if "begin" in said:
        ended.case = said["begin"]
    elif "case" in said:
        over.add(said["case"])
        ended.reported += 1
        ended.case = None
        results.put(part, said["case"], said["status"], said["facts"])
    else:
        ended.complete = True


def _end(child: subprocess.Popen, patience: float) -> None:
    """Waits so many seconds for a worker that should be through, then ends it and what it started."""
    try:
        child.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:200] if lines else "it said nothing"
