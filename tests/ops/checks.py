"""What the operator tests share: the one tolerance, dtypes, instruction sets, random trees, poisoned tensors."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import sparrow_ext

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def available_isas() -> list[str]:
    """The instruction sets of this CPU, narrowest first."""
    names, before = [], sparrow_ext.cpu_isa()
    for name in ("generic", "avx2", "avx512", "avx512_bf16"):
        with contextlib.suppress(RuntimeError):
            sparrow_ext.set_cpu_isa(name)
            names.append(name)
    sparrow_ext.set_cpu_isa(before)
    return names


@contextlib.contextmanager
def cpu_isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels on the named instruction set."""
    before = sparrow_ext.cpu_isa()
    sparrow_ext.set_cpu_isa(name)
    try:
        yield
    finally:
        sparrow_ext.set_cpu_isa(before)


def assert_close64(ours: Tensor, eager: Tensor, reference: Tensor, what: str = "") -> None:
    """err64(ours) <= 2 err64(eager) + 4 eps(dtype) max|reference|; NaN or infinity anywhere unexpected fails.

    ours and eager come from the same inputs, rounded to the dtype first; reference is computed in float64 from them.
    """
    assert ours.shape == reference.shape, f"{what}: shape {tuple(ours.shape)} is not {tuple(reference.shape)}"
    if reference.numel() == 0:
        return
    finite = reference.isfinite()
    same = (ours.double() == reference) | (ours.isnan() & reference.isnan())
    assert bool((finite | same).all()), f"{what}: infinities or NaN differ"
    assert bool(ours[finite].isfinite().all()), f"{what}: NaN or infinity where the reference is finite"
    if not bool(finite.any()):
        return
    error = (ours.double() - reference)[finite].abs().max().item()
    number = finite & eager.isfinite()  # bf16 matmuls on AMX read beyond the rows of a strided matrix: NaN times 0
    base = (eager.double() - reference)[number].abs().max().item() if bool(number.any()) else 0.0
    limit = 2 * base + 4 * torch.finfo(ours.dtype).eps * reference[finite].abs().max().item()
    assert error <= limit, f"{what}: error {error:.3e} > limit {limit:.3e} (eager composition: {base:.3e})"


def random_tree(nodes: int, generator: torch.Generator, *, forest: bool = False) -> Tensor:
    """int32 [nodes]: parents below their children; node 0 is a root, others are roots too where `forest`."""
    parents = [-1]
    for i in range(1, nodes):
        low = -1 if forest and torch.rand((), generator=generator) < 0.2 else max(0, i - 12)
        parents.append(int(torch.randint(low, i, (), generator=generator)) if low >= 0 else -1)
    return torch.tensor(parents[:nodes], dtype=torch.int32)


def strided(x: Tensor) -> Tensor:
    """The same values in a larger, poisoned buffer: every stride but the last differs from the contiguous one."""
    if x.dim() == 0 or x.numel() == 0:
        return x
    big = poison(x.new_empty([n + 3 if i < x.dim() - 1 else n + 8 for i, n in enumerate(x.shape)]))
    view = big[tuple(slice(1, n + 1) if i < x.dim() - 1 else slice(0, n) for i, n in enumerate(x.shape))]
    view.copy_(x)
    return view


def poison(x: Tensor) -> Tensor:
    """Fills with NaN, or with a large negative number for integers (True, 205 where those do not fit)."""
    small = {torch.bool: True, torch.uint8: 205}
    return x.fill_(float("nan") if x.is_floating_point() else small.get(x.dtype, -77777))


@contextlib.contextmanager
def guarded_workspace(size: int) -> Iterator[Tensor]:
    """uint8 [size] of NaN bits; on leaving, the bytes behind it must be untouched."""
    buffer = torch.full((size + 256,), 255, dtype=torch.uint8)
    yield buffer[:size]
    assert bool((buffer[size:] == 255).all()), "written beyond the workspace"


def topk_outputs(lead: tuple[int, ...], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Poisoned logp and ids [*lead, k] and lse [*lead], as topk_lse_out and lm_head_topk_out write them."""
    return poison(torch.empty(*lead, k)), poison(torch.empty(*lead, k, dtype=torch.int64)), poison(torch.empty(lead))


def compiled(function: Callable, *args: object) -> object:
    """Runs `function` under torch.compile(fullgraph=True): no graph break, shapes from the fake kernel."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")(*args)
