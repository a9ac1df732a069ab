"""Prompts, engines and their options for the tests inside vLLM; imported with and without vLLM."""

import base64
import functools
import json
import os
import pathlib
import subprocess
import sys

from transformers import AutoTokenizer

from sparrow.engines.vllm_prompts import vllm_prompt
from sparrow.engines.vllm_worker import speculating
from sparrow.miniature.shipped import DEMO, REFERENCE, pair
from sparrow.video import load_settings, load_video

ROOT = pathlib.Path(__file__).parents[2]
TARGET, DRAFTER = str(pair()[0]), str(REFERENCE)
DESCRIBE = "Describe the video in detail."
CASES = [
    {"prompt": DESCRIBE, "frames": 32},
    {"prompt": DESCRIBE, "frames": 8},
    {"prompt": "List the shapes.", "frames": 12},
    {"prompt": "What is a green diamond?", "frames": 0},
    {"prompt": DESCRIBE, "frames": 14},
    {"prompt": "Where does the yellow triangle go?", "frames": [8, 4], "images": 2},
]
QUESTIONS = [DESCRIBE, "List the shapes.", "Where does the yellow triangle go?"]
VIDEO = "data:video/mp4;base64," + base64.b64encode(DEMO.read_bytes()).decode()
ON_A_CPU = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip
GREEDY = {"temperature": 0, "max_tokens": 160}
SINGLE = {"cases": CASES, "sampling": GREEDY}
BATCH = {"cases": [*CASES, *CASES[::-1]], "sampling": GREEDY, "together": True}
SHORT = {"cases": CASES[1:5], "sampling": {"temperature": 0, "max_tokens": 60}, "together": True}
OPTIONS = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_batched_tokens": 2048, "max_num_seqs": 4,
    "limit_mm_per_prompt": {"video": 2, "image": 2}, "block_size": 32, "seed": 0, "disable_log_stats": False,
    "enable_prefix_caching": False,
}  # fmt: skip


def content(question: str) -> list[dict]:
    """A question about the demo's clip, as OpenAI's protocol has it."""
    return [{"role": "user", "content": [
        {"type": "video_url", "video_url": {"url": VIDEO}}, {"type": "text", "text": question},
    ]}]  # fmt: skip


CHATS = [{"messages": content(question), "sampling": {"temperature": 0, "max_tokens": 120}} for question in QUESTIONS]


def asked() -> bool:
    """Whether the tests inside vLLM are to run; without vLLM they fail then."""
    return os.environ.get("SPARROW_VLLM") == "1"


def on_a_cpu(monkeypatch) -> None:
    """This process' environment, for an engine's process that it starts."""
    for name, value in (ON_A_CPU | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}).items():
        monkeypatch.setenv(name, value)


def drafting(drafter: str = DRAFTER, **own) -> dict:
    """The options that put sparrow into an engine."""
    return speculating(drafter, 4, **own)


@functools.cache
def clip(target: str, frames: int):
    """(frames, what is known of them) of the demo's clip."""
    return load_video(DEMO, load_settings(target), num_frames=frames)


def prompt_of(case: dict, target: str) -> dict:
    """A case {"prompt", "frames": of the demo's clip; 0 = no video; several = several videos; "images": how many frames
    of the clip stand before them as images} as vLLM takes it.
    """
    frames = case["frames"] if isinstance(case["frames"], list) else [case["frames"]] if case["frames"] else []
    images = list(clip(target, 8)[0][: case.get("images", 0)])
    tokenizer = AutoTokenizer.from_pretrained(target)
    return vllm_prompt(tokenizer, case["prompt"], [clip(target, n) for n in frames], images)


def run(folder: pathlib.Path, passes: list[dict], target: str = TARGET, env: dict | None = None, **options) -> list:
    """The passes of one engine; see worker.py."""
    result = folder / "result.json"
    job = {"target": target, "options": OPTIONS | options, "passes": passes}
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.worker", str(result)], input=json.dumps(job), text=True, cwd=ROOT,
        env={**os.environ, **(env or {})}, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(result.read_text())["passes"]


def tokens(one: dict) -> list[list[int]]:
    return [outputs[0] for outputs in one["tokens"]]
