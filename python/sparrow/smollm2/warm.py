"""The first stage: tower and merger learn to say, for each visual token, in the language model's own word embeddings,
what covers it and where it is. No language model runs; it costs minutes and spares the other stages most of their work.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from sparrow.miniature.batches import LOOKS, Batch
from sparrow.miniature.world.scene import COLOURS, KINDS, SIZES

PLACE, GROUND = 0.7, 0.25  # of an embedding's length
GROUND_WEIGHT = 0.2  # of the error where no shape is
RIDGE = 1e-4
SOLVED = 24  # batches of `solve`
assert list(LOOKS) == ["colour", "kind", "size"]


class Words:
    """Targets for visual tokens.

    Args:
        embedding: the token table, [V, E]; tokenizer: of the model.
    """

    def __init__(self, embedding: Tensor, tokenizer: Any):
        def word(text: str) -> Tensor:
            return embedding[tokenizer(f" {text}")["input_ids"]].detach().float().mean(0)

        nothing = torch.zeros(embedding.shape[1])
        self.looks = [torch.stack([nothing, *map(word, words)]) for words in (COLOURS, KINDS, SIZES)]
        self.rows = torch.stack([(word("top") + word("upper")) / 2, nothing, (word("bottom") + word("lower")) / 2])
        self.columns = torch.stack([word("left"), nothing, word("right")])
        self.centre = (word("center") + word("middle")) / 2
        self.ground = GROUND * word("background")

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(float32 [tokens, E], whether a shape covers the token [tokens, 1])."""
        covered = (batch.looks[:, :1] > 0).float()
        looks = sum(table[batch.looks[:, i]] for i, table in enumerate(self.looks))
        return covered * (looks + PLACE * self._places(batch.grid)) + (1 - covered) * self.ground, covered

    def _places(self, grid: Tensor) -> Tensor:
        """The thirds of the frame in which the middles of the tokens lie, for each clip of the grid (merged 2 x 2)."""
        return torch.cat([self._of_clip(*clip) for clip in grid.tolist()])

    def _of_clip(self, times: int, height: int, width: int) -> Tensor:
        row, column = (((torch.arange(n // 2) + 0.5) / (n // 2) * 3).long() for n in (height, width))
        place = self.rows[row][:, None] + self.columns[column][None]
        place = torch.where((row[:, None] == 1) & (column[None] == 1), 1.0, 0.0)[..., None] * self.centre + place
        return place.flatten(0, 1).repeat(times, 1)


@torch.no_grad()
def solve(model: Any, words: Words, batches: Iterable[Batch]) -> None:
    """Sets the merger's last matrix and bias to the least-squares solution over some batches (ridge RIDGE)."""
    last = model.model.visual.merger.mlp[2]
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    products: list[Any] = [0, 0]
    for batch in batches:
        model.model.visual(batch.pixels, grid_thw=batch.grid)
        x = torch.cat([(features := seen.pop().double()), features.new_ones(len(features), 1)], 1)
        wanted, covered = words.targets(batch)
        weighted = (x * (GROUND_WEIGHT + (1 - GROUND_WEIGHT) * covered)).T
        products = [products[0] + weighted @ x, products[1] + weighted @ wanted.double()]
    hook.remove()
    ridge = RIDGE * products[0].diagonal().mean() * torch.eye(len(products[0]), dtype=torch.float64)
    solution = torch.linalg.solve(products[0] + ridge, products[1])
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])


def loss(model: Any, words: Words, batch: Batch) -> tuple[Tensor, float]:
    """(mean squared error over the targets' variance, the same over covered tokens)."""
    seen = model.model.visual(batch.pixels, grid_thw=batch.grid).pooler_output
    wanted, covered = words.targets(batch)
    error = (seen.float() - wanted).square().mean(1, keepdim=True)
    spread = wanted.var()
    weight = GROUND_WEIGHT + (1 - GROUND_WEIGHT) * covered
    on_shapes = (error * covered).sum() / covered.sum().clamp(min=1) / spread
    return (error * weight).sum() / weight.sum() / spread, float(on_shapes.detach())


def parameters(model: Any) -> Iterator[Tensor]:
    """What this stage trains."""
    return model.model.visual.parameters()
