"""A training run's folder: config.yaml, log.jsonl, curves.png, checkpoint.pt. A killed run goes on where it stopped."""

import dataclasses
import json
import math
import os
import pathlib
import random
from typing import Any

import torch
import yaml

CHECKPOINT, LOG, CONFIG, CURVES = "checkpoint.pt", "log.jsonl", "config.yaml", "curves.png"


class Run:
    """The folder of one run.

    Args:
        folder: made if missing. A run that is there must have been started with the same settings.
        config: a dataclass; written as config.yaml.
        main: False in all processes of a distributed run but the first: they read the checkpoint and write nothing.

    Raises:
        ValueError: the folder holds a run with other settings; the message names the first that differs.
    """

    def __init__(self, folder: str | pathlib.Path, config: Any, main: bool = True):
        self.folder, self.main = pathlib.Path(folder), main
        if not main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        new = yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)
        file = self.folder / CONFIG
        if file.exists() and file.read_text() != new:
            old = yaml.safe_load(file.read_text())
            key = next(k for k, v in yaml.safe_load(new).items() if old.get(k, "nothing") != v)
            raise ValueError(
                f"{self.folder} holds a run with other settings ({key}={old.get(key)!r}): choose another folder, or "
                "remove it to start again"
            )
        file.write_text(new)

    def log(self, **values: Any) -> None:
        """Appends one line to log.jsonl; it is on disk when this returns."""
        if not self.main:
            return
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps(values) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The log so far."""
        file = self.folder / LOG
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def save(self, **state: Any) -> None:
        """Writes checkpoint.pt whole or not at all, with the states of both random generators and the log's length."""
        state |= {"torch_rng": torch.get_rng_state(), "python_rng": random.getstate(), "log_lines": len(self.history())}
        temporary = self.folder / (CHECKPOINT + ".new")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / CHECKPOINT)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, if there is one; generators are set back and later log lines dropped."""
        file = self.folder / CHECKPOINT
        if not file.exists():
            if self.main:
                (self.folder / LOG).unlink(missing_ok=True)
            return None
        state = torch.load(file, map_location="cpu", weights_only=False)
        torch.set_rng_state(state.pop("torch_rng"))
        random.setstate(state.pop("python_rng"))
        kept = state.pop("log_lines")
        if self.main:
            lines = (self.folder / LOG).read_text().splitlines(keepends=True)[:kept]
            (self.folder / LOG).write_text("".join(lines))
        return state

    def curves(self, *names: str, x: str = "step") -> None:
        """Draws logged values over the steps into curves.png, one panel each."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        rows = self.history()
        figure, axes = plt.subplots(len(names), 1, figsize=(8, 2.4 * len(names)), squeeze=False, sharex=True)
        for axis, name in zip(axes[:, 0], names, strict=True):
            points = [(row[x], row[name]) for row in rows if name in row and x in row]
            lines = points and isinstance(points[0][1], dict)
            for key in points[0][1] if lines else [name]:
                have = [(at, v[key] if lines else v) for at, v in points if not lines or key in v]
                axis.plot(*zip(*have, strict=True), label=key, linewidth=1, marker="." if len(have) < 10 else None)
            axis.set_ylabel(name)
            if axis.has_data():
                axis.legend(fontsize=6, ncol=4)
        axes[-1, 0].set_xlabel(x)
        figure.tight_layout()
        figure.savefig(self.folder / CURVES, dpi=110)
        plt.close(figure)


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.02, hold: float = 0.0) -> float:
    """Linear warm-up, flat for the share `hold` of the run, then a cosine down to floor * peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = max(0.0, (step / max(1, steps) - hold) / (1 - hold))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def _plain(value: Any) -> Any:
    """Tuples as lists: what YAML writes and reads alike."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
