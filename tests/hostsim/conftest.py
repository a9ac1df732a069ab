"""The `sim` fixture, and which tests run in a sanitized process (SPARROW_HOSTSIM_MODE = race or asan)."""

import os
import pathlib
from collections import defaultdict

import pytest
import torch

from tests.hostsim import cuda
from tests.hostsim.library import LAUNCHED, MODES, Simulator, build_library, cuda_include

HERE = pathlib.Path(__file__).parent
MODE = os.environ.get("SPARROW_HOSTSIM_MODE", "value")
SEEDS = [0, 1, 2, 3] if MODE == "value" else [1]  # the sanitizers see what schedules would have to be lucky for
SHARED_KIB = [99, 163, 227]  # that a block may have on sm_89 and sm_120, on sm_80, on sm_90 and sm_100
CASES_PER_TEST = 3  # of each test function, in a sanitized process
SIMULATED = pytest.StashKey[Simulator]()


@pytest.fixture(scope="session")
def simulator(pytestconfig: pytest.Config) -> Simulator:
    if cuda_include() is None:
        pytest.skip("no CUDA toolkit headers here: the CUDA sources cannot be compiled")
    assert MODE in MODES, f"SPARROW_HOSTSIM_MODE must be one of {MODES}, got {MODE!r}"
    loaded = Simulator(build_library(MODE))
    pytestconfig.stash[SIMULATED] = loaded
    return loaded


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was launched, for the summary; a worker of pytest-xdist hands it on."""
    if (loaded := session.config.stash.get(SIMULATED, None)) is not None:
        session.config.stash[LAUNCHED] = loaded.launched()
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["launched"] = sorted(loaded.launched())


@pytest.fixture(params=[*SEEDS, *([pytest.param(cuda.PARAMETER, id="cuda")] if cuda.available() else [])])
def sim(request) -> Simulator | cuda.Moved:
    """The simulator under one of several schedules, each with a GPU's shared memory, and the GPU where there is one."""
    if request.param == cuda.PARAMETER and not cuda.CASES:
        return cuda.Moved(torch.ops.sparrow, "cuda")
    simulator = request.getfixturevalue("simulator")
    seed = max(request.param, 0)
    simulator.configure(seed=seed, shared_kib=SHARED_KIB[seed % len(SHARED_KIB)])
    return cuda.Moved(simulator.ops, "cpu") if request.param == cuda.PARAMETER else simulator


def few(items: list[pytest.Item]) -> list[pytest.Item]:
    """First, last and what lies evenly between."""
    last = min(CASES_PER_TEST, len(items)) - 1
    return [items[i * (len(items) - 1) // max(last, 1)] for i in range(last + 1)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the count of launched kernels last. A sanitized process keeps a few cases of each kernel test, one with
    SPARROW_CUDA_CASES the "cuda" cases (all, or a few of each).
    """
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    kept = items
    if MODE != "value" or cuda.CASES:
        groups = defaultdict(list)
        for item in ours:
            if "sim" in item.fixturenames and (not cuda.CASES or item.callspec.params["sim"] == cuda.PARAMETER):
                groups[item.path, item.originalname].append(item)
        kept = [item for group in groups.values() for item in (group if cuda.CASES == "all" else few(group))]
    if MODE != "value":
        kept += [item for item in ours if item.path.name == "test_all_kernels.py"]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = sorted(kept, key=lambda item: item.path == HERE / "test_all_kernels.py")
