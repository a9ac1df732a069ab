"""One thread, no model-hub traffic, quiet transformers; tiny targets are built once a session."""

import functools
import logging
import os
import warnings
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker of pytest-xdist runs a file, or all of tests/hostsim, which counts its launches."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/hostsim" if nodeid.startswith("tests/hostsim/") else nodeid.split("::", maxsplit=1)[0]

    return Files(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over which simulated kernels a worker of pytest-xdist has launched."""
    from tests.hostsim.library import LAUNCHED

    if names := getattr(node, "workeroutput", {}).get("launched"):
        node.config.stash[LAUNCHED] = node.config.stash.get(LAUNCHED, set()) | set(names)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says how much of the CUDA source this run has executed, and where."""
    from tests.hostsim.library import LAUNCHED, declared_kernels, launched_line

    terminalreporter.write_line(launched_line(declared_kernels(), config.stash.get(LAUNCHED, None)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _logged_deprecations():
    """Deprecations that transformers only logs are warnings too, and with pyproject's filterwarnings errors."""
    real = logging.Logger.warning

    def warning(self, message, *args, **kwargs):
        if self.name.startswith("transformers") and "deprecat" in str(message).lower():
            warnings.warn(str(message), FutureWarning, stacklevel=3)
        real(self, message, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.Logger, "warning", warning)
        yield


@pytest.fixture(scope="session")
def tiny():
    """tiny(family, seed=0, ...) -> a random model of the family, cached."""
    import transformers

    from sparrow.targets.tiny import tiny_target

    transformers.logging.set_verbosity_error()
    return functools.lru_cache(maxsize=None)(tiny_target)


@pytest.fixture(scope="session")
def greedy():
    """greedy(model, inputs, n, **options) -> transformers' own greedy output, without end-of-sequence unless given."""

    def run(model, inputs, n, **options):
        options = {"eos_token_id": None, **options}
        return model.generate(**inputs, do_sample=False, max_new_tokens=n, **options)

    return run
