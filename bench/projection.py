"""What the miniature's accepted lengths would be worth on a GPU with a 7B target: a projection, not a measurement.

    python -m bench.projection bench/results/miniature/main.json 25-5-8 4096

takes tau at T = 0, of one tree at one visual length, from an evaluation and divides it by the cost of a round in plain
steps, both at the roofline: every weight and every cached row read once per pass, or the tensor cores' time where that
is longer. Launches, host time and prefill are left out, on both sides.
"""

import json
import pathlib
import sys
from dataclasses import dataclass

from sparrow.tree import TreeConfig

BF16 = 2


@dataclass(frozen=True)
class Device:
    """bytes and operations per second (datasheet, dense bfloat16)."""

    name: str
    bandwidth: float
    flops: float


H200 = Device("H200", 4.8e12, 989e12)
L20 = Device("L20", 0.864e12, 119.5e12)


@dataclass(frozen=True)
class Shape:
    """A target; Qwen2.5-VL-7B."""

    hidden: int = 3584
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    ffn: int = 18944
    vocab: int = 152064

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        projections = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return projections + 3 * self.hidden * self.ffn

    @property
    def row(self) -> int:
        """Numbers in a cached row of one layer."""
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Draft:
    """What a drafter reads in one forward, in numbers of the target's shape.

    Attributes:
        video: share of the visual rows in its cache.
        layers: of the target's shape; 28 = the target itself.
        vocab: rows of its head.
    """

    video: float = 0.0
    layers: int = 1
    vocab: int = 152064


def layers_seconds(d: Device, s: Shape, layers: int, rows: int, context: float) -> float:
    """`rows` queries through `layers` layers over `context` cached rows: weights, then attention."""
    weights = max(BF16 * s.layer / d.bandwidth, 2 * rows * s.layer / d.flops)
    attention = max(BF16 * s.row * context / d.bandwidth, 4 * rows * s.heads * s.head_dim * context / d.flops)
    return layers * (weights + attention)


def matrix_seconds(d: Device, inputs: int, outputs: int, rows: int) -> float:
    """A linear layer."""
    return max(BF16 * inputs * outputs / d.bandwidth, 2 * rows * inputs * outputs / d.flops)


def round_in_steps(d: Device, s: Shape, tree: TreeConfig, draft: Draft, visual: int, text: int) -> float:
    """Time of one round (draft and verify) over that of a plain step."""

    def target(rows: int) -> float:
        head = matrix_seconds(d, s.hidden, s.vocab, rows)
        return layers_seconds(d, s, s.layers, rows, visual + text) + head

    rows = tree.width
    level = layers_seconds(d, s, draft.layers, rows, draft.video * visual + text)
    level += matrix_seconds(d, s.hidden, draft.vocab, rows)
    if draft.layers == 1:
        level += matrix_seconds(d, 2 * s.hidden, s.hidden, rows)
    return (target(tree.nodes) + tree.depth * level) / target(1)


DRAFTS = {
    "MSD": Draft(video=1.0),
    "MSD + VATA": Draft(),
    "ViSpec": Draft(),
    "text-only": Draft(),
    "Sparrow, the paper's recipe": Draft(),
    "Sparrow, shipped": Draft(),
    "SpecVLM": Draft(video=0.1, layers=28),
}
STATIC = "25-5-8"  # SpecVLM's: 25 nodes, 5 levels, fewer than 8 rows in most of its passes
HEAD_32K = 32768
VISUAL, TEXT = 25_000, 1_000


def rows(result: dict, tree: str, length: int) -> list[dict[str, object]]:
    """One per system and head of the evaluation's cells with this tree at this visual length of the miniature."""
    found = []
    for cell in result["cells"]:
        name, point = cell["arm"], (cell["length"], cell["temperature"])
        if name not in DRAFTS or point != (length, 0) or "tree_choice" in cell or cell["tree"] not in (tree, None):
            continue
        draft, shape = DRAFTS[name], TreeConfig.parse(cell["tree"] or STATIC)
        for vocab in (draft.vocab, HEAD_32K) if draft.layers == 1 else (draft.vocab,):
            small = Draft(draft.video, draft.layers, vocab)
            costs = [round_in_steps(device, Shape(), shape, small, VISUAL, TEXT) for device in (H200, L20)]
            found.append({"system": name, "vocab": vocab, "tau": cell["tau"]["value"], "round_in_steps": costs})
    return found


def markdown(result: dict, tree: str, length: int) -> str:
    """The table."""
    lines = [
        f"A projection, no measurement: tau of the miniature at {length} visual tokens (T = 0, tree {tree}) over the "
        f"roofline's cost of a round for Qwen2.5-VL-7B at {VISUAL} visual and {TEXT} text tokens, bfloat16.",
        "",
        "| system | draft head | tau (miniature) | H200: round in plain steps | speed-up | L20: round | speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows(result, tree, length):
        tau, costs = row["tau"], row["round_in_steps"]
        assert isinstance(tau, float) and isinstance(costs, list)
        cells = " | ".join(f"{cost:.2f} | {tau / cost:.2f}" for cost in costs)
        lines.append(f"| {row['system']} | {row['vocab']} | {tau:.2f} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    file, tree, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(markdown(json.loads(pathlib.Path(file).read_text()), tree, length))
    return 0


if __name__ == "__main__":
    sys.exit(main())
