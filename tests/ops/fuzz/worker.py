"""A process that runs broken calls: one JSON line in, [mutation, choices], one out, what came of it.

It has little memory, and ends with a traceback where a call takes longer than 5 s.
"""

import faulthandler
import json
import os
import pathlib
import resource
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[3]
MEMORY = 6 << 30  # bytes of address space, torch's own 2 GB among them
SECONDS = 5


class Worker:
    """The process, started again when it is gone. `run` returns its answer, or what it said when it died."""

    def __init__(self):
        self._process: subprocess.Popen[str] | None = None

    def run(self, op: str, mutation: str, taken: list[int]) -> dict[str, str]:
        """{"came": "result" | "refused" | "not here" | "died", "argument": name, "type": ..., "message": ...}"""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "tests.ops.fuzz.worker"]
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        try:
            self._process.stdin.write(json.dumps([op, mutation, taken]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        words = self._process.stderr.read()
        code = self._process.wait()
        self._process = None
        return {"came": "died", "message": f"exit code {code}\n{words[-3000:]}"}

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "python")]
    import torch

    from tests.ops.fuzz.calls import MAKERS, replay
    from tests.ops.fuzz.mutations import MUTATIONS, NotHere

    torch.set_num_threads(1)
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # it reserves terabytes of addresses
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        op, mutation, taken = json.loads(line)
        draw = replay(taken)
        answer = {"came": "result"}
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            call = MAKERS[op](draw)
            answer["argument"] = MUTATIONS[mutation](call, draw)
            try:
                call.run()
            except Exception as error:
                answer |= {"came": "refused", "type": type(error).__name__, "message": str(error)}
        except NotHere:
            answer["came"] = "not here"
        faulthandler.cancel_dump_traceback_later()
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
