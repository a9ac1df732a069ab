"""What the machine has, asked without torch: the build (setup.py, tools/) loads this file by its path."""

import os
import shutil
import subprocess


def has_gpu() -> bool:
    """True where the driver shows an NVIDIA GPU."""
    if os.path.exists("/dev/nvidia0"):
        return True
    smi = shutil.which("nvidia-smi")  # under WSL there is no device file
    if smi is None:
        return False
    try:
        listed = subprocess.run([smi, "-L"], capture_output=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU 0" in listed.stdout
