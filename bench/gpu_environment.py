"""GPU checks, part 1: what runs where, and whether a launch arrives: on a side stream, in a graph."""

import subprocess
from collections.abc import Iterator
from typing import Any

import torch

import sparrow_ext
from bench.gpu_measure import operators
from bench.gpu_worker import Case, Place
from sparrow.provenance import provenance


def cases(place: Place) -> Iterator[Case]:
    yield Case("versions", lambda: versions(place))
    yield Case("kernels", lambda: kernels(place))
    yield Case("launch on a stream", lambda: launch(place, graph=False))
    yield Case("launch in a graph", lambda: launch(place, graph=True))


def versions(place: Place) -> dict[str, Any]:
    """Facts, no verdict."""
    facts: dict[str, Any] = {"cuda": torch.version.cuda, "provenance": provenance("python -m bench.gpu_check")}
    if place.gpu:
        ask = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
        driver = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "capability": torch.cuda.get_device_capability(),
            "driver": driver,
        }
    return facts


def kernels(place: Place) -> dict[str, Any]:
    """Every operator has a CUDA kernel in this build."""
    without = [name for name in operators() if not sparrow_ext.has_cuda_kernels(name)]
    assert not (place.gpu and without), f"built without CUDA kernels of {', '.join(without)}"
    return {"operators": len(operators()), "without CUDA kernels": without}


def launch(place: Place, *, graph: bool) -> dict[str, Any]:
    """A launch through the statically linked cudart, on torch's current stream or inside a CUDA graph."""
    parent = torch.tensor([[-1, 0, 0, 1]], dtype=torch.int32, device=place.device)
    want = sparrow_ext.tree_mask(parent.cpu())[0]
    if not place.gpu:
        found = sparrow_ext.tree_mask(parent)[0]
    elif graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            found = sparrow_ext.tree_mask(parent)[0]
        captured.replay()
        torch.cuda.synchronize()
    else:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = sparrow_ext.tree_mask(parent)[0]
        side.synchronize()
    assert torch.equal(found.cpu(), want), f"got {found.tolist()}"
    return {}
