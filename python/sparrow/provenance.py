"""Where numbers come from: commit, versions, processor."""

import importlib.metadata
import pathlib
import platform
import subprocess
from datetime import datetime, timezone

import torch

import sparrow_ext

PACKAGE = pathlib.Path(__file__).parent


def provenance(command: str) -> dict[str, object]:
    """What a reader needs to repeat a measurement.

    Args:
        command: how it was started.
    """
    return {
        "command": command,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor(),
        "isa": sparrow_ext.cpu_isa(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


def commit() -> str:
    """The commit of this checkout, and whether files differ from it; "no checkout" for an installed package."""
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    if tracked.returncode:
        return "no checkout"
    dirty = _git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return _git("rev-parse", "HEAD").stdout.strip() + (" with uncommitted changes" if dirty else "")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=False)


def processor() -> str:
    """The processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
