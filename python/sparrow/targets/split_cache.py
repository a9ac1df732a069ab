"""A target's cache whose upper layers lack rows that the lower ones have."""

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor

from sparrow.targets.cache import Place, TargetCache


class SplitCache(TargetCache):
    """Layers below `at` are its own; those from there on are `upper`'s, with lengths of their own.

    For decoding one sequence (visual_drop_layer). What it says of its rows is of the lower layers.

    Args:
        num_layers, capacity: as of TargetCache.
        at: the first of the upper layers.
        lacking: so many rows fewer they will have.
    """

    def __init__(self, num_layers: int, capacity: int, at: int, lacking: int):
        super().__init__(at, capacity)
        self.upper = TargetCache(num_layers - at, capacity - lacking)
        self.layers += self.upper.layers

    @property
    def layer_lengths(self) -> list[Tensor]:
        return super().layer_lengths + self.upper.layer_lengths

    @property
    def places(self) -> list[Place]:
        return super().places + self.upper.places

    @contextlib.contextmanager
    def appending(self, nodes: int, error: Tensor | None = None) -> Iterator[None]:
        with super().appending(nodes, error), self.upper.appending(nodes, error):
            yield

    def commit(self, path: Tensor, num_path: Tensor, error: Tensor | None = None) -> None:
        super().commit(path, num_path, error)
        self.upper.commit(path, num_path, error)

    def count(self, rows: Sequence[int]) -> None:
        super().count(rows)
        self.upper.count(rows)

    def level(self, length: int) -> None:
        lacking = self.rows[0] - self.upper.rows[0]
        super().level(length)
        self.upper.level(length - lacking)

    def bring_back(self) -> None:
        super().bring_back()
        self.upper.bring_back()
