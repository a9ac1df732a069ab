"""PEP 517 backend: setuptools, plus torch as a build requirement only where the target environment has none.

Headers and import libraries are all the build needs (stable ABI), and an installed torch is found on disk in spite of
build isolation, so no second torch is ever downloaded.
"""

import importlib.util
import os
import runpy
import sysconfig

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (the PEP 517 hooks we do not change)

TORCH = "torch>=2.10"
has_gpu = runpy.run_path(os.path.join(os.path.dirname(__file__), "..", "sparrow_ext", "_machine.py"))["has_gpu"]


def find_torch() -> str | None:
    """The folder of an installed torch with the stable-ABI headers; $SPARROW_TORCH_DIR comes first."""
    candidates = [os.environ.get("SPARROW_TORCH_DIR")]
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        candidates.append(os.path.dirname(spec.origin))
    candidates += [os.path.join(sysconfig.get_paths()[scheme], "torch") for scheme in ("purelib", "platlib")]
    for folder in candidates:
        if folder and os.path.exists(os.path.join(folder, "include", "torch", "csrc", "stable", "library.h")):
            return folder
    return None


def _torch_if_missing() -> list[str]:
    return [] if find_torch() else [TORCH]


def get_requires_for_build_wheel(config_settings=None):
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_if_missing()


def get_requires_for_build_editable(config_settings=None):
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_if_missing()
