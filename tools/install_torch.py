"""Installs the locked torch and build tools into this environment: where no GPU is, torch's build for the CPU.

    python tools/install_torch.py [REQUIREMENT ...]

CPU builds (5 GB less, on Linux) have an index of their own. Where it cannot be reached within some seconds, or where a
GPU is, the default index's build is taken. $TORCH_INDEX names another index, of another CUDA release, say.
"""

import os
import pathlib
import runpy
import ssl
import subprocess
import sys
import threading
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE = 5.0  # seconds, names that resolve slowly included

has_gpu = runpy.run_path(str(ROOT / "sparrow_ext" / "_machine.py"))["has_gpu"]


def reachable(url: str) -> bool:
    """True where the index answers in time (urllib's own timeout does not cover the look-up of the name)."""
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(f"{url}/torch/", method="HEAD")
        context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE, context=context):
                answers.append(True)
        except OSError:
            pass  # no answer is the answer

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answers)


def index() -> tuple[str | None, str]:
    """The index to ask besides the default one, and why."""
    if given := os.environ.get("TORCH_INDEX"):
        return given, f"from {given}, as $TORCH_INDEX asks"
    if has_gpu():
        return None, "from the default index, since this machine has a GPU"
    if reachable(CPU_INDEX):
        return CPU_INDEX, f"for the CPU from {CPU_INDEX}, since no GPU is here (other builds: TORCH_INDEX=...)"
    return None, f"from the default index: no GPU is here, but {CPU_INDEX} cannot be reached"


def main() -> int:
    """Runs pip with what was found; its exit code."""
    url, why = index()
    print(f"== torch {why}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "-c", str(ROOT / "requirements.lock"), "torch", *sys.argv[1:]]
    return subprocess.run([*command, *(["--extra-index-url", url] if url else [])], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
