"""The door: help and refusals come at once, without torch; every value is checked there; Ctrl-C is one line."""

import ast
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest
import torch

import sparrow
from sparrow.cli import main as cli
from sparrow.cli.arguments import Command, Doctor
from sparrow.cli.decoding_arguments import Generate
from sparrow.cli.parser import COMMANDS, documented, parse
from sparrow.cli.train_arguments import TrainDrafter
from sparrow.miniature.recipe import TargetRecipe
from sparrow.targets.tiny import tiny_target
from sparrow.training.recipe import DrafterTraining

SECTIONS = {"data", "answers", "states", "drafter", "recipe", "optimisation"}
# runs `python -m sparrow` with the arguments; its last line on stderr: seconds of CPU, heavy modules imported
MEASURED = """
import atexit, json, resource, runpy, sys
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    heavy = sorted({"torch", "transformers", "rich"} & set(sys.modules))
    print(json.dumps([used.ru_utime + used.ru_stime, heavy]), file=sys.stderr)
atexit.register(tell)
runpy.run_module("sparrow", run_name="__main__", alter_sys=True)
"""
NAMED = {
    **{name: command for name, command in COMMANDS.items() if not isinstance(command, dict)},
    **{f"train {name}": command for name, command in COMMANDS["train"].items()},
}


def run(code: str, *argv: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *argv], text=True, check=False, timeout=120, **how)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["train"], 0),
        (["generate", "--help"], 0),
        (["train", "drafter", "--help"], 0),
        (["--nonsense"], 2),
        (["generate", "--target", "x", "--prompt", "y", "--nonsense"], 2),
        (["generate", "--target", "x", "--prompt", "y", "--temperature", "nan"], 1),
    ],
)
def test_answers_at_once(argv, code):
    done = run(MEASURED, *argv, capture_output=True)
    *said, last = done.stderr.strip().splitlines()
    seconds, heavy = json.loads(last)
    assert done.returncode == code and seconds < 0.5 and not heavy, done.stderr
    assert bool(said) == (code > 0) and bool(done.stdout) == (code == 0)
    if said:
        assert len(said) == 1 and said[0].startswith("sparrow") and argv[-1] in said[0]


def test_bare_command_prints_its_help(capsys):
    assert cli.main([]) == 0
    bare = capsys.readouterr().out
    for argv in (["--help"], ["--version"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 0
    assert capsys.readouterr().out == f"{bare}sparrow {sparrow.__version__}\n"
    assert all(name in bare for name in COMMANDS)
    assert cli.main(["train"]) == 0
    kinds = capsys.readouterr().out
    assert all(name in kinds for name in ("drafter", "answers", "target"))


@pytest.mark.parametrize("name", NAMED)
def test_help_of_a_command(name, capsys):
    """A description, every option, and an example that the parser takes for this command."""
    command = NAMED[name]
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert " ".join(command.__doc__.split())[:60] in " ".join(text.split())
    assert command.EXAMPLE in text and max(map(len, text.splitlines())) <= 100
    for field in dataclasses.fields(command):
        assert field.metadata["positional"] or "--" + field.name.replace("_", "-") in text
    example = shlex.split(command.EXAMPLE.replace("\\\n", " "))
    assert example[0] == "sparrow" and type(parse(example[1:])) is command


def leaves(cls: type, prefix: str = "") -> dict[str, object]:
    """Every setting and its default."""
    found: dict[str, object] = {}
    for f in dataclasses.fields(cls):
        made = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        found |= leaves(type(made), f"{prefix}{f.name}.") if dataclasses.is_dataclass(made) else {prefix + f.name: made}
    return found


@pytest.mark.parametrize(
    ("name", "cls"), [("drafter", DrafterTraining), ("answers", DrafterTraining), ("target", TargetRecipe)]
)
def test_help_of_training_names_every_setting(name, cls, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    written = {None: "null", True: "true", False: "false", dataclasses.MISSING: "   (required)"}
    for setting, default in leaves(cls).items():
        if not isinstance(default, tuple):
            plain = isinstance(default, (int, float, str)) and not isinstance(default, bool)
            assert f"  {setting}={default if plain else written[default]}" in lines
        assert any(line.startswith(f"  {setting}=") for line in lines)
    assert lines.count("      None = the target's.") == (name != "target")  # what the docstring says is there, too


def test_what_docstrings_say_of_settings():
    """Every setting has a text; fields may share one."""
    sections = [type(f.default_factory()) for f in dataclasses.fields(DrafterTraining) if f.name in SECTIONS]
    assert [cls.__name__ for cls in sections] == ["Data", "Answers", "States", "Shape", "Recipe", "Optimisation"]
    for cls in (DrafterTraining, TargetRecipe, *sections):
        missing = {f.name for f in dataclasses.fields(cls)} - set(documented(cls)) - SECTIONS
        assert missing <= {"auxiliary_until"}, missing  # told with "auxiliary"
    told = documented(sections[-1])
    assert told["log_every"] == told["save_every"] == "steps between lines of the log, validations, checkpoints."
    assert (told["beta1"], told["weight_decay"]) == ("AdamW's", "of both.")


def test_arguments_are_frozen():
    arguments = parse(["train", "drafter", "run=x", "target=y"])
    assert arguments == TrainDrafter(overrides=("run=x", "target=y")) and isinstance(arguments, Command)
    with pytest.raises(dataclasses.FrozenInstanceError):
        arguments.config = "other"
    assert hash(Doctor()) == hash(Doctor())


LARGEST = 3.4028234e38


INPUTS = {"input_ids": torch.tensor([[5, 6, 7]])}


@pytest.mark.parametrize(
    ("option", "taken", "refused"),
    [
        ("temperature", [1e-30, 1.0, LARGEST], [1e-40, 9.9e-31, 3.41e38, 1e39, -1.0, float("inf"), float("nan")]),
        ("top_p", [0.0, 0.5, 1.0], [-0.1]),
        ("top_k", [0, 1, 2**31 - 1], [-1, 2**31]),
        ("repetition_penalty", [1 / LARGEST, 1.0, LARGEST], [0.0, -1.0, 1e-50, 3.41e38, float("inf"), float("nan")]),
        ("seed", [-(2**63), 2**63 - 1], [2**63, -(2**63) - 1]),
    ],
)
def test_the_door_takes_what_generate_takes(option, taken, refused, monkeypatch, capsys):
    """Values that the operators take pass, and decode; others are refused before anything is loaded."""
    base = ["generate", "--target", "x", "--prompt", "y", *([] if option == "temperature" else ["--temperature", "1"])]
    monkeypatch.setattr(cli, "_command", lambda where: pytest.fail("something was loaded"))
    flag, model = "--" + option.replace("_", "-"), tiny_target("qwen2_5_vl")
    for value in refused:
        with pytest.raises(ValueError):
            sparrow.generate(model, None, **INPUTS, do_sample=True, max_new_tokens=3, **{option: value})
        assert cli.main([*base, flag, str(value)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"sparrow: {flag} must ") and line.endswith(f"got {value}")
    for value in taken:
        arguments = parse([*base, flag, str(value)])
        assert isinstance(arguments, Generate) and getattr(arguments, option) == value
        options = {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}
        options |= {"seed": arguments.seed, "repetition_penalty": arguments.repetition_penalty or 1.0}
        out = sparrow.generate(model, None, **INPUTS, do_sample=True, max_new_tokens=3, **options)
        assert out.sequences.shape[1] > 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generate", "--target", "", "--prompt", "y"], "--target must not be empty"),
        (["generate", "--target", "x", "--prompt", " "], "--prompt must not be empty"),
        (["generate", "--target", "x", "--prompt", "y", "--video", ""], "--video must not be empty"),
        (["generate", "--target", "x", "--prompt", "y", "--fps", "0"], "--fps must be positive and finite, got 0.0"),
        (["generate", "--target", "x", "--prompt", "y", "--fps", "nan"], "--fps must be positive and finite, got nan"),
        (["generate", "--target", "x", "--prompt", "y", "--fps", "1", "--num-frames", "2"], "--fps and --num-frames"),
        (["generate", "--target", "x", "--prompt", "y", "--tree", "8-4-2"], "--tree needs --drafter FOLDER"),
        (["generate", "--target", "x", "--prompt", "y", "--top-p", "nan"], "--top-p must lie in [0, 1], got nan"),
        (["eval", "--temperature", "0", "1e39"], "--temperature must be 0 or lie in"),
        (["eval", "--timed", "-1"], "--timed must be at least 0"),
        (["eval", "--seed", str(2**64)], "--seed must be an integer of 64 bits"),
        (["eval", "--table", "figures"], "--table must be one of main, length"),
        (["synthetic"], "--out FOLDER"),
        (["synthetic", "--out", "x", "--first", "-1"], "--first must lie in"),
    ],
)
def test_other_values_refused_at_the_door(argv, words, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_command", lambda where: pytest.fail("something was loaded"))
    assert cli.main(argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sparrow: ") and words in line


@pytest.mark.parametrize("flag", ["--max-new-tokens", "--num-frames"])
@pytest.mark.parametrize("value", ["0", "-1", str(2**31), "many", "9" * 5000])
def test_counts_are_words_to_the_parser(flag, value, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "--target", "x", "--prompt", "y", flag, value])
    assert stop.value.code == 2 and flag in capsys.readouterr().err


# ---- the lazy package ----


def test_import_brings_no_torch():
    code = "import sparrow, sys; names = dir(sparrow); assert 'torch' not in sys.modules; print(*names)"
    names = run(code, capture_output=True).stdout.split()
    assert set(sparrow.__all__) <= set(names) and all(getattr(sparrow, name) is not None for name in sparrow.__all__)
    with pytest.raises(AttributeError, match="module 'sparrow' has no attribute 'nothing'"):
        _ = sparrow.nothing


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING are where the names really come from."""
    tree = ast.parse(pathlib.Path(sparrow.__file__).read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {a.name: i.module for i in typed.body if isinstance(i, ast.ImportFrom) for a in i.names}
    assert seen == {name: f"sparrow.{where}" for name, where in sparrow._HOME.items()}
    assert set(seen) == set(sparrow.__all__)


# ---- ends ----

# sends Ctrl-C to itself when a module is first imported, or at the very end
INTERRUPTED = """
import atexit, os, signal, sys
at = sys.argv.pop(1)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        try:
            if name == at:
                os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:  # as modules in C do
            raise ImportError("initialisation failed") from None
sys.meta_path.insert(0, Interrupt())
if at == "end":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
from sparrow.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def interruptible():
    """A shell's background job, as `make test &` is, hands an ignored SIGINT on to its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("at", ["argparse", "sparrow.cli.parser", "sparrow.cli.doctor", "torch", "transformers", "end"])
def test_interrupted_at_any_moment(at):
    argv = ["--version"] if at == "end" else ["doctor"]
    done = run(INTERRUPTED, at, *argv, capture_output=True)
    assert (done.returncode, done.stderr.strip()) == (cli.INTERRUPTED, "sparrow: interrupted")


@pytest.mark.usefixtures("interruptible")
def test_interrupted_from_the_keyboard():
    """While it decodes: a real signal from another process."""
    command = [sys.executable, "-m", "sparrow", "demo"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and "visual tokens" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == cli.INTERRUPTED and [line for line in err.splitlines() if line] == [
        "sparrow: interrupted"
    ]


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("argv", [["--version"], ["train", "answers", "--help"]])
def test_no_space_left_for_standard_output(argv, buffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sparrow", *argv], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "sparrow: No space left on device: 'standard output'\n")


def test_a_reader_that_has_enough():
    command = f"{sys.executable} -m sparrow generate --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def raising(error: Exception):
    def run(arguments):
        raise error

    return lambda where: run


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
ALLOCATOR += f"allocate {2**32} bytes. Error code 12 (Cannot allocate memory)"
STACK = "\nException raised from f at /build/x.cpp:3 (most recent call first):\nframe #0"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError(), "ValueError in test_start.py, line "),
        (AssertionError(), "AssertionError in test_start.py, line "),
        (MemoryError(), "out of memory: "),
        (RuntimeError(ALLOCATOR), "out of memory: 4.0 GiB were asked for. Use fewer frames"),
        (OSError(28, "No space left on device", "/a/b.json"), "No space left on device: '/a/b.json'"),
        (RuntimeError(f"tree: wrong{STACK}"), "RuntimeError: tree: wrong ("),
    ],
)  # fmt: skip
def test_no_error_is_empty_or_shows_the_build(error, line, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_command", raising(error))
    assert cli.main(["doctor"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"sparrow: {line}") and "/build" not in said and "frame #" not in said
