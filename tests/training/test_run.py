"""Settings and run folders."""

import dataclasses
import itertools
import random

import pytest
import torch

from sparrow.training.config import ConfigError, load_config
from sparrow.training.run import CHECKPOINT, Run, learning_rate


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 1
    weights: tuple[float, ...] = (1.0,)


@dataclasses.dataclass(frozen=True)
class Outer:
    rate: float = 1e-3
    layer: int | None = None
    name: str = "a"
    fast: bool = False
    inner: Inner = dataclasses.field(default_factory=Inner)

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate must be positive, got {self.rate}")


def test_defaults_file_and_overrides(tmp_path):
    assert load_config(Outer) == Outer()
    file = tmp_path / "c.yaml"
    file.write_text("rate: 2e-4\ninner:\n  depth: 3\n")
    assert load_config(Outer, file) == Outer(rate=2e-4, inner=Inner(3))
    changed = load_config(Outer, file, ["inner.depth=5", "layer=4", "fast=true", "inner.weights=[1, 0.5]", "name=b"])
    assert changed == Outer(2e-4, 4, "b", True, Inner(5, (1.0, 0.5)))
    assert load_config(Outer, file, ["layer=null"]).layer is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("depth=1", "unknown setting depth; there are rate"),
        ("inner.width=1", "unknown setting inner.width; there are inner.depth"),
        ("rate", "must look like a.b=c"),
        ("rate=fast", "rate must be float, got 'fast'"),
        ("inner.depth=1.5", "inner.depth must be int, got 1.5"),
        ("inner.depth=true", "inner.depth must be int, got True"),
        ("inner=3", "inner must be a mapping"),
        ("inner.weights=1", "inner.weights must be a list"),
        ("rate=-1", "rate must be positive"),
        ("rate.a=1", "unknown|must be"),
    ],
)
def test_config_errors(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, None, [override])


def test_a_setting_without_default_must_be_given():
    @dataclasses.dataclass(frozen=True)
    class Needs:
        folder: str
        steps: int = 1

    assert load_config(Needs, None, ["folder=a"]) == Needs("a")
    with pytest.raises(ConfigError, match="folder must be given"):
        load_config(Needs, None, ["steps=2"])


def test_not_yaml(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("a: [1")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(Outer, file)
    with pytest.raises(FileNotFoundError, match="no such file of settings"):
        load_config(Outer, tmp_path / "none.yaml")


def test_a_run_resumes_generators_and_log(tmp_path):
    run = Run(tmp_path, Outer())
    assert run.load() is None
    run.log(step=0, loss=1.0)
    run.save(step=1)
    expected = torch.rand(3), random.random()
    run.log(step=1, loss=0.5)  # after the checkpoint: done again on resume
    again = Run(tmp_path, Outer())
    assert again.load() == {"step": 1}
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]
    assert again.history() == [{"step": 0, "loss": 1.0}]


def test_a_run_without_a_checkpoint_starts_its_log_again(tmp_path):
    Run(tmp_path, Outer()).log(step=0, loss=1.0)  # killed before the first checkpoint
    again = Run(tmp_path, Outer())
    assert again.load() is None and again.history() == []
    again.log(step=0, loss=2.0)
    assert again.history() == [{"step": 0, "loss": 2.0}]


def test_only_the_first_process_writes(tmp_path):
    run = Run(tmp_path, Outer())
    run.log(step=0)
    run.save(step=1)
    run.log(step=1)
    other = Run(tmp_path, Outer(rate=1.0), main=False)
    assert other.load() == {"step": 1}
    other.log(step=9)
    assert run.history() == [{"step": 0}, {"step": 1}]


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    Run(tmp_path, Outer())
    Run(tmp_path, Outer())
    with pytest.raises(ValueError, match=r"other settings \(rate=0.001\)"):
        Run(tmp_path, Outer(rate=1.0))


def test_a_broken_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    run = Run(tmp_path, Outer())
    run.save(step=1)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        run.save(step=2)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_learning_rate():
    rates = [learning_rate(s, 100, 1.0, 10, floor=0.1, hold=0.3) for s in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and all(r == 1.0 for r in rates[10:30])
    assert all(a >= b for a, b in itertools.pairwise(rates[30:])) and 0.1 < rates[-1] < 0.12


def test_curves(tmp_path):
    run = Run(tmp_path, Outer())
    for step in range(5):
        run.log(step=step, loss=1 / (1 + step))
    run.log(step=4, true={"colour": 0.5, "kind": 0.2})
    run.curves("loss", "true")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
