"""Prompts, engines and their options for the tests inside vLLM; imported with and without vLLM."""

import functools
import json
import os
import pathlib
import subprocess
import sys

from transformers import AutoTokenizer

from sparrow.miniature.shipped import DEMO, pair
from sparrow.video import load_settings, load_video

ROOT = pathlib.Path(__file__).parents[2]
TARGET, DRAFTER = (str(folder) for folder in pair())
DESCRIBE = "Describe the video in detail."
CASES = [
    {"prompt": DESCRIBE, "frames": 32},
    {"prompt": DESCRIBE, "frames": 8},
    {"prompt": "List the shapes.", "frames": 12},
    {"prompt": "What is a green diamond?", "frames": 0},
    {"prompt": DESCRIBE, "frames": 14},
    {"prompt": "Where does the yellow triangle go?", "frames": [8, 4]},
]
ON_A_CPU = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip
GREEDY = {"temperature": 0, "max_tokens": 160}
OPTIONS = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_batched_tokens": 2048, "max_num_seqs": 4,
    "limit_mm_per_prompt": {"video": 2, "image": 0}, "block_size": 32, "seed": 0, "disable_log_stats": False,
    "enable_prefix_caching": False,
}  # fmt: skip


def asked() -> bool:
    """Whether the tests inside vLLM are to run; without vLLM they fail then."""
    return os.environ.get("SPARROW_VLLM") == "1"


def speculating(drafter: str = DRAFTER, length: int = 4, **own) -> dict:
    """The options that put sparrow into an engine."""
    method = {"method": "custom_class", "model": "sparrow.engines.vllm.SparrowProposer"}
    return {
        "speculative_config": method | {"num_speculative_tokens": length},
        "additional_config": {"sparrow": {"drafter": drafter, **own}},
    }


@functools.cache
def clip(target: str, frames: int):
    """(frames, what is known of them) of the demo's clip, as vLLM takes a video."""
    pictures, info = load_video(DEMO, load_settings(target), num_frames=frames)
    return pictures, {
        "total_num_frames": info.total_frames, "fps": info.fps, "frames_indices": list(info.indices),
        "duration": info.total_frames / info.fps, "height": info.height, "width": info.width, "video_backend": "pyav",
        "do_sample_frames": False,
    }  # fmt: skip


def chat_text(target: str, prompt: str, videos: int) -> str:
    content = [{"type": "video"}] * videos + [{"type": "text", "text": prompt}]
    return AutoTokenizer.from_pretrained(target).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


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
