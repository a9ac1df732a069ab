"""A training run's folder: config.yaml, log.jsonl, curves.png, checkpoint.pt. A killed run goes on where it stopped.

The checkpoint holds the settings and the log, too: what else is damaged is written again from it.
"""

import dataclasses
import json
import math
import pathlib
import pickle
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch
import yaml

from sparrow.files import append_lines, lock, read_json_lines, write_checkpoint, write_figure, write_text

CHECKPOINT, LOG, CONFIG, CURVES = "checkpoint.pt", "log.jsonl", "config.yaml", "curves.png"
END = b"\n...\n"  # of a document in YAML, so that a file cut short can be told
KEPT = ("settings", "log", "torch_rng", "python_rng")  # in every checkpoint, beside what `save` is given


class Run:
    """The folder of one run. While it is used no other process can use it; it may be moved between uses.

    Args:
        folder: made if missing. A run that is there must have been started with the same settings.
        config: a dataclass; written as config.yaml.
        main: False in all processes of a distributed run but the first: they read the checkpoint and write nothing.
        places: settings, "data.clips" for one, that say only where something lies: they may change.

    Raises:
        ValueError: the folder holds a run with other settings; the message names the first that differs.
        BlockingIOError: another process uses it.
    """

    def __init__(self, folder: str | pathlib.Path, config: Any, main: bool = True, places: Sequence[str] = ()):
        self.folder, self.main, self.places = pathlib.Path(folder), main, places
        values = _plain(dataclasses.asdict(config))
        self.settings = _without(values, places)
        if not main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.folder)
        old = _without(self._settings_of_the_folder(values), places)
        for key in self.settings | old:
            if old.get(key, "nothing") != self.settings.get(key, "nothing"):
                raise ValueError(
                    f"{self.folder} holds a run with other settings ({key}={old.get(key)!r}): choose another folder, "
                    "or remove it to start again"
                )
        write_text(self.folder / CONFIG, yaml.safe_dump(values, sort_keys=False, explicit_end=True))

    def _settings_of_the_folder(self, new: dict[str, Any]) -> dict[str, Any]:
        """config.yaml's; where that is lost the checkpoint's; in an empty folder the new ones."""
        file = self.folder / CONFIG
        if file.exists():
            text = file.read_bytes()
            if text.endswith(END):
                return yaml.safe_load(text)
            print(f"{file} is damaged: it is written again", file=sys.stderr)
        return self._checkpoint()["settings"] if (self.folder / CHECKPOINT).exists() else new

    def log(self, **values: Any) -> None:
        """Appends one line to log.jsonl; it is on disk when this returns."""
        if self.main:
            append_lines(self.folder / LOG, [json.dumps(values)])

    def history(self) -> list[dict[str, Any]]:
        """The log so far."""
        file = self.folder / LOG
        return [values for _, values in read_json_lines(file)] if file.exists() else []

    def save(self, **state: Any) -> None:
        """Writes checkpoint.pt whole or not at all, with the states of both random generators, settings and log."""
        rng = {"torch_rng": torch.get_rng_state(), "python_rng": random.getstate()}
        about = {"settings": self.settings, "log": self.history()}
        write_checkpoint(self.folder / CHECKPOINT, state | rng | about)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, if there is one; the generators and the log are set back to it.

        Raises:
            ValueError: it is damaged, or holds anything but numbers, texts and tensors: no code in it is run.
        """
        log = self.folder / LOG
        if not (self.folder / CHECKPOINT).exists():
            if self.main and log.exists():
                write_text(log, "")
            return None
        state = self._checkpoint()
        torch.set_rng_state(state.pop("torch_rng"))
        random.setstate(state.pop("python_rng"))
        lines = "".join(json.dumps(row) + "\n" for row in state.pop("log"))
        if self.main:
            if not (log.exists() and log.read_bytes().startswith(lines.encode())):
                print(f"{log} is damaged: it is written again", file=sys.stderr)
            write_text(log, lines)
        del state["settings"]
        return state

    def _checkpoint(self) -> dict[str, Any]:
        file = self.folder / CHECKPOINT
        with file.open("rb") as opened:
            try:
                state = torch.load(opened, map_location="cpu", weights_only=True)
                if missing := [name for name in KEPT if name not in state]:
                    raise ValueError(f"it has no {missing[0]}")
            except MemoryError:
                raise
            except Exception as error:  # damage ends in exceptions of many kinds
                fault = " ".join(str(error).split())[:200] or type(error).__name__
                if isinstance(error, pickle.UnpicklingError):  # torch's words recommend to run what is in there
                    fault = "it holds other things than numbers, texts and tensors"
                raise ValueError(
                    f"{file} is damaged, or no checkpoint of this program ({fault}). Restore it; or remove it, and the "
                    "run starts again at its first step with what else is in the folder"
                ) from error
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
        write_figure(self.folder / CURVES, figure, dpi=110)
        plt.close(figure)


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.02, hold: float = 0.0) -> float:
    """Linear warm-up, flat for the share `hold` of the run, then a cosine down to floor * peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = max(0.0, (step / max(1, steps) - hold) / (1 - hold))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def _without(values: dict[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """A copy of nested settings without those named."""
    inner = {k: _without(v, [p[len(k) + 1 :] for p in places if p.startswith(f"{k}.")]) if isinstance(v, dict) else v
             for k, v in values.items()}  # fmt: skip
    return {k: v for k, v in inner.items() if k not in places}


def _plain(value: Any) -> Any:
    """Tuples as lists: what YAML writes and reads alike."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
