"""Low-rank adapters (arXiv 2106.09685) on the decoder's attention, and merging them."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")
SCALE = 2.0


class Lora(nn.Module):
    """A linear layer plus SCALE * B A; B starts at zero, so that nothing changes at first.

    Args:
        inner: the layer, [out, in]; rank: of A [rank, in] and B [out, rank].
    """

    def __init__(self, inner: nn.Linear, rank: int):
        super().__init__()
        self.inner, self.on = inner, True
        self.A = nn.Parameter(torch.randn(rank, inner.in_features) / math.sqrt(inner.in_features))
        self.B = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + SCALE * F.linear(F.linear(x, self.A), self.B) if self.on else y


def places(decoder: Any) -> Iterator[tuple[str, Any, str]]:
    """(name of the layer within the decoder, the module it is an attribute of, the attribute)."""
    for number, layer in enumerate(decoder.layers):
        for name in ADAPTED:
            yield f"layers.{number}.self_attn.{name}", layer.self_attn, name


def add(decoder: Any, rank: int) -> dict[str, Lora]:
    """Puts adapters into the decoder; their names are those of the layers they wrap."""
    made = {}
    for name, owner, attribute in places(decoder):
        made[name] = Lora(getattr(owner, attribute), rank)
        setattr(owner, attribute, made[name])
    return made


def weights(adapters: dict[str, Lora]) -> dict[str, Tensor]:
    """What `merge` takes: "NAME.A" and "NAME.B"."""
    return {f"{name}.{part}": getattr(a, part).detach() for name, a in adapters.items() for part in ("A", "B")}


@torch.no_grad()
def merge(decoder: Any, state: dict[str, Tensor]) -> None:
    """Adds the adapters' products to the weights of a decoder without adapters.

    Raises:
        ValueError: the state names other layers than the decoder has.
    """
    owners = {name: getattr(owner, attribute) for name, owner, attribute in places(decoder)}
    for name in named(owners, state):
        owners[name].weight += SCALE * state[f"{name}.B"].float() @ state[f"{name}.A"].float()


def named(layers: Iterable[str], state: dict[str, Tensor]) -> list[str]:
    """Those of the decoder's layers that a result adapts: all of a projection, or none.

    Raises:
        ValueError: it names other layers.
    """
    kinds = {name.rpartition(".")[0].rpartition(".")[2] for name in state}
    wanted = [name for name in layers if name.rpartition(".")[2] in kinds]
    if set(state) != {f"{name}.{part}" for name in wanted for part in ("A", "B")}:
        raise ValueError(
            "adapters of other layers: the adapters must name a projection in every layer, and nothing else"
        )
    return wanted


@torch.no_grad()
def begin_with(adapters: dict[str, Lora], state: dict[str, Tensor]) -> None:
    """Adapters that do what those of an earlier result did, which may have had a lower rank or fewer projections.

    Raises:
        ValueError: it names other layers, or has a higher rank.
    """
    for name in named(adapters, state):
        old, new = [state[f"{name}.{part}"].float() for part in ("A", "B")], adapters[name]
        rank = len(old[0])
        if rank > len(new.A):
            raise ValueError(f"adapters of rank {rank} do not fit into rank {len(new.A)}")
        new.A[:rank], new.B[:, :rank] = old[0], old[1]


@contextlib.contextmanager
def without(adapters: dict[str, Lora]) -> Iterator[None]:
    """Inside, the decoder is what it was before it had adapters."""
    for adapter in adapters.values():
        adapter.on = False
    try:
        yield
    finally:
        for adapter in adapters.values():
            adapter.on = True
