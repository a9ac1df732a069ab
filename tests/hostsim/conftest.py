import pytest

from tests.hostsim import cuda
from tests.hostsim.library import Simulator, build, cuda_include


@pytest.fixture(scope="session")
def simulator() -> Simulator:
    if cuda_include() is None:
        pytest.skip("no CUDA toolkit headers here: the CUDA sources cannot be compiled")
    return Simulator(build())


@pytest.fixture(params=[0, 1, 2, 3, *(["cuda"] if cuda.available() else [])])
def sim(request) -> Simulator | cuda.Gpu:
    """The simulator under one of several schedules, and the GPU where there is one."""
    if request.param == "cuda":
        return cuda.Gpu()
    simulator = request.getfixturevalue("simulator")
    simulator.configure(seed=request.param)
    return simulator
