"""The shape of the draft tree. Imports no torch: the command line reads trees before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

MAX_NODES = 128
MAX_WIDTH = 32


@dataclass(frozen=True)
class TreeConfig:
    """A dynamic draft tree (EAGLE-2, arXiv 2406.16858): per level the best `width` nodes are expanded, then all
    candidates are re-ranked and the best `total` are verified.

    `TreeConfig(total, depth, width)` equals EAGLE's `total_token=total+1, depth=depth-1, top_k=width`: EAGLE counts the
    root as a token and its first level apart.

    Attributes:
        total: drafted nodes, root excluded (1 to 127).
        depth: levels below the root = draft forward passes (1 to 64).
        width: nodes expanded per level (1 to 32); 1 is a chain.
    """

    total: int = 30
    depth: int = 4
    width: int = 8

    def __post_init__(self):
        for name, low, high in (("total", 1, MAX_NODES - 1), ("depth", 1, 64), ("width", 1, MAX_WIDTH)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"TreeConfig.{name} must be an integer in [{low}, {high}], got {value!r}")
        if self.total < self.depth:
            raise ValueError(f"TreeConfig.total ({self.total}) must be at least depth ({self.depth})")
        if self.total > self.candidates:
            raise ValueError(
                f"TreeConfig.total must be at most the {self.candidates} candidates that depth={self.depth}, "
                f"width={self.width} produce, got {self.total}"
            )
        if self.depth * self.width > MAX_NODES:
            raise ValueError(f"TreeConfig: depth * width must be at most {MAX_NODES}, got {self.depth * self.width}")

    @property
    def candidates(self) -> int:
        """Nodes the levels produce before re-ranking."""
        return self.width + (self.depth - 1) * self.width**2

    @property
    def nodes(self) -> int:
        """Rows of the verify pass: the root and the drafted nodes."""
        return self.total + 1

    @property
    def max_path(self) -> int:
        """The longest path from the root, root included = the most tokens a round can emit."""
        return self.depth + 1

    @classmethod
    def chain(cls, length: int) -> TreeConfig:
        """A plain chain of `length` drafted tokens."""
        return cls(total=length, depth=length, width=1)

    @classmethod
    def parse(cls, text: str) -> TreeConfig:
        """From "total-depth-width", as the paper writes it ("30-4-8")."""
        try:
            total, depth, width = (int(part) for part in text.split("-"))
        except ValueError:
            raise ValueError(f"a tree is written total-depth-width, as in 30-4-8; got {text!r}") from None
        return cls(total, depth, width)

    def __str__(self) -> str:
        return f"{self.total}-{self.depth}-{self.width}"


class Root(TreeConfig):
    """Plain decoding's tree: nothing is drafted below the root."""

    def __init__(self) -> None:
        super().__init__(total=1, depth=1, width=1)

    @property
    def nodes(self) -> int:
        return 1

    @property
    def max_path(self) -> int:
        return 1

    def __str__(self) -> str:
        return "none"


# The paper's settings (consumer card, data-centre card, the small one), and a deep one for predictable text.
PRESETS = {text: TreeConfig.parse(text) for text in ("30-4-8", "48-5-10", "25-5-8", "40-10-6")}


class DraftTree(NamedTuple):
    """A drafted tree, ready to be verified.

    Attributes:
        tokens: int64 [B, N], node 0 = the round's root.
        parent: int32 [B, N], see tree_mask.
        anc: int64 [B, N, W], ancestor words.
        depth: int32 [B, N].
        num_nodes: int32 [B], the nodes in use.
        scores: float32 [B, candidates], joint log-probabilities of all candidates, `width` of level 1 and then
            width * width of each further one, grouped by parent; None where the drafter has none.
    """

    tokens: Tensor
    parent: Tensor
    anc: Tensor
    depth: Tensor
    num_nodes: Tensor
    scores: Tensor | None = None
