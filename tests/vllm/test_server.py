"""`sparrow serve` on the CPU with the shipped pair: OpenAI's protocol by OpenAI's client, a video in the request."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.vllm.cases import DRAFTER, ON_A_CPU, QUESTIONS, ROOT, TARGET, asked, content

pytestmark = pytest.mark.skipif(not asked(), reason="vLLM has an environment of its own: `make test-vllm`")
ARGS = "--dtype float32 --enforce-eager --max-model-len 2048 --max-num-seqs 8 --served-model-name miniature"
START = 500  # seconds, on a busy machine


@contextlib.contextmanager
def server(folder, *words: str):
    """(client, address) of a server that these words start; its log is in `folder`."""
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = tuple(word.replace("PORT", str(port)) for word in words)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **ON_A_CPU, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},  # no process for the only worker
        )  # fmt: skip
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-4000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(1)
        yield OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300), address
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answer(client, question: str, stream: bool = False, **more) -> str:
    """A greedy answer about the video."""
    asked_for = {"model": "miniature", "messages": content(question), "temperature": 0, "max_tokens": 120, **more}
    if not stream:
        return client.chat.completions.create(**asked_for).choices[0].message.content
    parts = client.chat.completions.create(**asked_for, stream=True)
    return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


def metrics(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as response:
        text = response.read().decode()
    return {
        name: sum(map(float, re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", text, re.MULTILINE)))
        for name in ("spec_decode_num_drafts", "spec_decode_num_accepted_tokens")
    }


def test_the_same_answers_streamed_aborted_and_many_at_once(without, tmp_path):
    plain = without[1]
    assert len(plain[0].split()) > 15
    words = ("-m", "sparrow", "serve", TARGET, "--drafter", DRAFTER, "--vllm-args", f"--port PORT {ARGS}")
    with server(tmp_path, *words) as (client, address):
        assert answer(client, QUESTIONS[0], stream=True) == plain[0]
        counted = metrics(address)
        length = 1 + counted["spec_decode_num_accepted_tokens"] / counted["spec_decode_num_drafts"]
        print(f"accepted length: {length:.2f} tokens per step")
        assert length > 2  # the drafter for this numbering, not just any
        for parts in range(1, 4):  # the client hangs up in mid-answer
            stream = client.chat.completions.create(
                model="miniature", messages=content(QUESTIONS[0]), temperature=0, max_tokens=120, stream=True
            )
            for _ in range(parts):
                next(iter(stream))
            stream.close()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # more than the engine runs at once
            got = list(pool.map(lambda i: answer(client, QUESTIONS[i % 3], stream=bool(i % 2)), range(16)))
        assert got == [plain[i % 3] for i in range(16)]
    log = (tmp_path / "log").read_text()
    assert log.startswith("python -m vllm.entrypoints.openai.api_server ")
    assert json.loads(re.search(r"--additional-config '(.*?)'", log)[1])["sparrow"]["drafter"] == DRAFTER
