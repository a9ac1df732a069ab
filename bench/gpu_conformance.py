"""GPU checks, part 2: every ptx wrapper on the GPU beside its meaning on the CPU (tests/hostsim/conformance.cu)."""

import shutil
from collections.abc import Iterator

from bench.gpu_measure import ROOT, compiled
from bench.gpu_worker import Case, Place, Skip

SOURCE = ROOT / "tests" / "hostsim" / "conformance.cu"


def cases(place: Place) -> Iterator[Case]:
    yield Case("ptx wrappers", lambda: wrappers(place))


def wrappers(place: Place) -> None:
    """The program's output is what the CPU's meaning gives, line by line."""
    if place.gpu:
        if shutil.which("nvcc") is None:
            raise Skip("no nvcc")
        said = compiled(SOURCE)()
    else:
        from tests.hostsim.library import run_program

        said = run_program("conformance", "value").stdout
    want = SOURCE.with_suffix(".txt").read_text().splitlines()
    wrong = [i for i, (a, b) in enumerate(zip(said.splitlines(), want, strict=False)) if a != b]
    assert not wrong and len(said.splitlines()) == len(want), f"lines {wrong[:8]} of {len(want)} differ"
