"""Tapes on disk: recorded once per clip, visual length, temperature and reused layers, whoever is replayed on them.

A clip's visual rows do not depend on what is generated: they are kept once per clip, length and layer, in a file of
their own (exact, in the target's dtype), and recorded when the first drafter that sees the video asks for them. 100
clips at 64, 256, 1024, 2048 and 4096 visual tokens of 192 numbers: 575 MB per layer, and 100 MB of tapes per
temperature.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sparrow.drafter_config import DrafterConfig
from sparrow.evaluation.questions import sampling
from sparrow.evaluation.tape import Tape, record

Inputs = Callable[[], dict[str, Any]]  # only called where something must be recorded


@dataclass(frozen=True)
class Key:
    """Which run is on a tape: a clip's, by its split, visual length and number, at a temperature."""

    split: str
    length: int
    number: int
    temperature: float


class Tapes:
    """The tapes of one target.

    Args:
        folder: where they are kept; they serve every later evaluation of the same target.
        model: the target.
        seed: of the sampling noise; clip i draws with seed + i.
        max_new_tokens: per clip.
    """

    def __init__(self, folder: pathlib.Path, model: Any, seed: int, max_new_tokens: int):
        kind = str(model.dtype).removeprefix("torch.")
        self.folder, self.model = folder / f"{model_hash(model)}-{kind}", model
        self.seed, self.max_new_tokens = seed, max_new_tokens

    def name(self, key: Key, config: DrafterConfig) -> str:
        """Of the tape's file: everything that it depends on."""
        layers = "-".join(map(str, config.state_layers))
        run = f"T{key.temperature:g}-seed{self.seed + key.number}-{self.max_new_tokens}"
        return f"{key.split}-{key.length}-{key.number}-{run}-layer{layers}.safetensors"

    def load(self, key: Key, config: DrafterConfig, inputs: Inputs) -> Tape:
        """The tape on which a drafter with this config can be replayed; recorded where it is not there."""
        options, seed = sampling(key.temperature, self.max_new_tokens), self.seed + key.number
        make = lambda: vars(record(self.model, inputs(), config.state_layers, options, seed))  # noqa: E731
        tape = Tape(**cached(self.folder / self.name(key, config), make))
        return tape if config.seen_layer is None else replace(tape, visual=self._visual(key, config, inputs))

    def _visual(self, key: Key, config: DrafterConfig, inputs: Inputs) -> Tensor:
        """The clip's visual rows [V, E] of the layer that the drafter sees."""

        def make() -> dict[str, Tensor]:  # one token: only the prompt matters
            return {"rows": record(self.model, inputs(), None, sampling(0.0, 1), 0, config.seen_layer).visual}

        name = f"{key.split}-{key.length}-{key.number}-visual{config.seen_layer}.safetensors"
        return cached(self.folder / name, make)["rows"]


def cached(file: pathlib.Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the file holds, or what `make()` gives, kept there; a file is written whole or not at all."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}.new")  # several evaluations may share a folder
        save_file({name: value.contiguous() for name, value in make().items()}, new)
        new.replace(file)
    return load_file(file)


def model_hash(model: Any) -> str:
    """16 hex digits from up to 64 values of every parameter: another checkpoint gives another hash."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        values = p.detach().flatten()
        digest.update(name.encode())
        digest.update(values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
