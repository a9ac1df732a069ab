"""Small training runs on the tiny targets."""

import json
import pathlib

from sparrow.training.config import build
from sparrow.training.recipe import DrafterTraining
from tests.videos import sample_inputs


class RandomClips:
    """Random questions about random videos; `fail_at` stops the given call of inputs()."""

    def __init__(self, family: str, count: int, videos: int = 1, fail_at: int = -1, images: int = 0):
        self.family, self.count, self.videos, self.fail_at, self.calls = family, count, videos, fail_at, 0
        self.images = images

    def __len__(self) -> int:
        return self.count

    def inputs(self, clip: int):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return sample_inputs(self.family, seed=clip, videos=self.videos, text=5 + clip % 3, images=self.images)

    def describe(self, clip: int):
        return {"seed": clip}


def settings(folder: pathlib.Path, **sections) -> DrafterTraining:
    """A short run in the folder; sections replace these settings."""
    values = {
        "run": str(folder / "run"),
        "target": "tiny",
        "data": {"validation": 1},
        "answers": {"max_new_tokens": 16, "batch": 2, "folder": str(folder / "answers")},
        "states": {"folder": str(folder / "states")},
        "optimisation": {
            "steps": 6, "batch_rows": 120, "warmup": 2, "log_every": 1, "validate_every": 100, "save_every": 2,
            "learning_rate": 3e-3,
        },
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return build(DrafterTraining, values)


def log(run: pathlib.Path | str, *names: str) -> list[tuple]:
    """Values of the log's training lines."""
    rows = [json.loads(line) for line in (pathlib.Path(run) / "log.jsonl").read_text().splitlines()]
    return [tuple(row[name] for name in names) for row in rows if all(name in row for name in names)]
