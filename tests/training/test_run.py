"""Settings and run folders."""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import random

import pytest
import torch
import yaml

from sparrow.training.config import ConfigError, load_config
from sparrow.training.run import CHECKPOINT, CONFIG, LOG, Run, learning_rate


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


ROWS = [{"step": step, "loss": 1 / (1 + step)} for step in range(3)]


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    """A run with a checkpoint behind the third line of its log, and a fourth line."""
    run = Run(tmp_path / "run", Outer())
    for row in ROWS:
        run.log(**row)
    run.save(step=3, weights=torch.arange(4.0))
    run.log(step=3, loss=9.0)
    return tmp_path / "run"


def resumed(folder: pathlib.Path, **settings) -> tuple[Run, dict]:
    run = Run(folder, Outer(**settings))
    state = run.load()
    assert state is not None and state["step"] == 3 and torch.equal(state["weights"], torch.arange(4.0))
    return run, state


def damage(file: pathlib.Path, how: str) -> None:
    whole = file.read_bytes()
    if how == "lost":
        file.unlink()
    else:
        damaged = {"emptied": b"", "torn": whole[: len(whole) // 2], "zeros": bytes(len(whole)), "text": b"rubbish\n"}
        file.write_bytes(damaged[how])


@pytest.mark.parametrize("how", ["lost", "emptied", "torn", "zeros", "text"])
@pytest.mark.parametrize("name", [LOG, CONFIG])
def test_log_and_settings_come_back_from_the_checkpoint(saved, capsys, name, how):
    before = (saved / CONFIG).read_bytes()
    damage(saved / name, how)
    if name == CONFIG:  # settings are still compared, and a refusal changes nothing
        with pytest.raises(ValueError, match=r"other settings \(rate=0.001\)"):
            Run(saved, Outer(rate=1.0))
        assert (f"{saved / CONFIG} is damaged" in capsys.readouterr().err) == (how != "lost")
    run, _ = resumed(saved)
    assert (f"{saved / LOG} is damaged" in capsys.readouterr().err) == (name == LOG)
    assert run.history() == ROWS and (saved / CONFIG).read_bytes() == before
    assert yaml.safe_load(before)["inner"] == {"depth": 1, "weights": [1.0]}
    run.log(step=3)
    assert run.history()[-1] == {"step": 3}


@pytest.mark.parametrize("how", ["emptied", "torn", "zeros", "text"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_touched(saved, how):
    damage(saved / CHECKPOINT, how)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{saved}/checkpoint.pt is damaged, or .+\. Restore it; or remove it"):
            Run(saved, Outer()).load()
    assert len(Run(saved, Outer()).history()) == 4


def test_a_checkpoint_of_another_program_is_named(saved):
    torch.save({"step": 3}, saved / CHECKPOINT)
    with pytest.raises(ValueError, match=rf"^{saved}/checkpoint.pt is damaged, or .+it has no settings"):
        Run(saved, Outer()).load()


def test_settings_and_checkpoint_damaged_together(saved):
    """Nothing says what the checkpoint was made with."""
    damage(saved / CONFIG, "emptied")
    damage(saved / CHECKPOINT, "torn")
    with pytest.raises(ValueError, match=rf"^{saved}/checkpoint.pt is damaged"):
        Run(saved, Outer())


class Evil:
    def __init__(self, file: pathlib.Path):
        self.file = file

    def __reduce__(self):
        return pathlib.Path.touch, (self.file,)


def test_resuming_runs_no_code(saved, tmp_path):
    state = torch.load(saved / CHECKPOINT, weights_only=True)
    for pickled in (Evil(tmp_path / "ran"), state | {"weights": Evil(tmp_path / "ran")}):
        torch.save(pickled, saved / CHECKPOINT)
        with pytest.raises(ValueError, match=rf"^{saved}/checkpoint.pt is damaged, .+ other things than numbers"):
            Run(saved, Outer()).load()
    assert not (tmp_path / "ran").exists()
    torch.load(saved / CHECKPOINT, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have run


def test_a_run_can_be_moved(saved):
    """Settings that are places may change with it; others may not."""
    where = ["name", "inner.depth"]
    run = Run(saved.parent / "placed", Outer(name="/old/a", inner=Inner(1)), places=where)
    run.save(step=1)
    new = saved.parent / "elsewhere" / "run"
    new.parent.mkdir()
    (saved.parent / "placed").rename(new)
    for lost in (False, True):
        moved = Run(new, Outer(name="/new/a", inner=Inner(2)), places=where)
        assert moved.load() == {"step": 1}
        assert yaml.safe_load((new / CONFIG).read_text())["name"] == "/new/a"
        with pytest.raises(ValueError, match=r"other settings \(inner={'weights': \[1.0\]}\)"):
            Run(new, Outer(name="/new/a", inner=Inner(2, (2.0,))), places=where)
        if not lost:
            (new / CONFIG).unlink()


def test_a_run_in_use_is_refused_to_others(saved):
    """One clear line with folder and process; this process' own runs share it, and the last one lets go."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def use():
        try:
            theirs.send(Run(saved, Outer()).load()["step"])
        except BlockingIOError as error:
            theirs.send(str(error))

    def asked():
        child = context.Process(target=use)
        child.start()
        child.join(60)
        return ours.recv()

    run = Run(saved, Outer())
    Run(saved, Outer())
    assert asked().startswith(f"{saved} is in use by process {os.getpid()} on ")
    assert len(run.history()) == 4
    del run
    assert asked() == 3


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
