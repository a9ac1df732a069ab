"""What a timed case of the GPU checks is: its calls, its floor's terms, its peers."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.gpu_peers import Call


@dataclass(frozen=True)
class Sizes:
    """A 7B target: hidden E, V vocabulary, L layers, H query and K key heads of D."""

    hidden: int = 3584
    vocab: int = 152064
    draft_vocab: int = 32000
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    ffn: int = 18944


@dataclass
class Work:
    """One case, ready to run: a call per copy, the floor's terms, peers' calls.

    Attributes:
        ours: one call per copy of the buffers.
        bytes, flops: of one call: what must be read or written, and multiply-adds times two on tensor cores.
        peers: name -> calls.
        missing: name -> why that peer is not among them ("not installed", or its error).
        same: the peers' results are ours (not where they draw other noise).
        unpack: name -> what makes a peer's result comparable to ours.
        on_host: peers that read tensors on the host: no CUDA graph can hold them.
        compiled: peers that need torch.compile.
    """

    ours: list[Call]
    bytes: int
    flops: int = 0
    peers: dict[str, list[Call]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    same: bool = True
    unpack: dict[str, Callable] = field(default_factory=dict)
    on_host: set[str] = field(default_factory=set)
    compiled: set[str] = field(default_factory=set)

    def add(self, name: str, calls: list[Call] | str) -> None:
        """Takes what gpu_peers.load returned."""
        if isinstance(calls, str):
            self.missing[name] = calls
        else:
            self.peers[name] = calls

    def disagreement(self, name: str) -> str | None:
        """None, or how the first result of that peer differs from ours.

        Integers must be equal where there is nothing else; floats may differ by 5 % of their largest (beside them ids
        are not compared: tied logits may come in another order).
        """
        if not self.same:
            return None
        theirs = _as_tuple(self.unpack.get(name, lambda x: x)(self.peers[name][0]()))
        pairs = list(zip(_as_tuple(self.ours[0]()), theirs, strict=False))
        if any(ours.is_floating_point() for ours, _ in pairs):
            pairs = [pair for pair in pairs if pair[0].is_floating_point()]
        for ours, other in pairs:
            limit = 0.05 * float(ours.float().abs().max()) if ours.is_floating_point() else 0.0
            apart = float((ours.double() - other.reshape(ours.shape).double()).abs().max())
            if not apart <= limit:
                return f"its result differs from ours by {apart:.3g} (allowed: {limit:.3g})"
        return None


def _as_tuple(x: Tensor | tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    build: Callable[[torch.device, int], Work]
