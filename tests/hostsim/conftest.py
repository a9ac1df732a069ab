import pytest

from tests.hostsim.library import Simulator, build, cuda_include


@pytest.fixture(scope="session")
def simulator() -> Simulator:
    if cuda_include() is None:
        pytest.skip("no CUDA toolkit headers here: the CUDA sources cannot be compiled")
    return Simulator(build())


@pytest.fixture(params=[0, 1, 2, 3])
def sim(simulator, request) -> Simulator:
    """The simulator under one of several schedules."""
    simulator.configure(seed=request.param)
    return simulator
