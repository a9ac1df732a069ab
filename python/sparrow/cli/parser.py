"""The parser of the `sparrow` command, made from the dataclasses of its arguments."""

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import sparrow
from sparrow.cli.analyse_arguments import Analyse
from sparrow.cli.arguments import (
    Command,
    Demo,
    Doctor,
    Eval,
    Fetch,
    Import,
    Serve,
    Synthetic,
)
from sparrow.cli.decoding_arguments import Chat, Generate
from sparrow.cli.options import positive, shape, shape_or_choice, shape_or_word
from sparrow.cli.train_arguments import TrainAnswers, TrainDrafter, TrainSmolLM2, TrainTarget

COMMANDS: dict[str, type[Command] | dict[str, type[Command]]] = {
    "generate": Generate,
    "chat": Chat,
    "serve": Serve,
    "train": {"drafter": TrainDrafter, "answers": TrainAnswers, "target": TrainTarget, "smollm2": TrainSmolLM2},
    "demo": Demo,
    "eval": Eval,
    "analyse": Analyse,
    "synthetic": Synthetic,
    "import": Import,
    "fetch": Fetch,
    "doctor": Doctor,
}
METAVARS: dict[Any, str] = {
    int: "N",
    float: "X",
    positive: "N",
    shape: "TREE",
    shape_or_word: "TREE",
    shape_or_choice: "TREE",
}
WIDTH = 78
ABOUT = "Fast, lossless decoding for video LLMs."
ABOUT_TRAIN = "train a drafter, or a target"


class Parser(argparse.ArgumentParser):
    """A parser whose help ends with the settings of a dataclass, where it has one, and whose errors are one line."""

    settings: str | None = None

    def format_help(self) -> str:
        return super().format_help() + ("" if self.settings is None else settings_help(self.settings))

    def _print_message(self, message: str, file: Any = None) -> None:  # argparse's own swallows a full disk
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` lists what there is)\n")


def parse(argv: Sequence[str] | None = None) -> Command | None:
    """The arguments of one command; None where none was named and help was printed instead.

    Raises:
        SystemExit: after --help and --version, or for words argparse refuses.
        ValueError: values that the command refuses; the message names the option.
    """
    found = vars(_parser().parse_args(argv))
    if (listed := found.get("listed")) is not None:
        listed.print_help()
        return None
    values = {f.name: found[f.name] for f in dataclasses.fields(found["command"])}
    return found["command"](**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _parser() -> Parser:
    parser = Parser(prog="sparrow", description=ABOUT, epilog="`sparrow COMMAND --help` says more.")
    parser.add_argument("--version", action="version", version=f"sparrow {sparrow.__version__}")
    _add_all(parser, COMMANDS, "COMMAND")
    return parser


def _add_all(parser: Parser, commands: dict[str, Any], metavar: str) -> None:
    parser.set_defaults(listed=parser)
    listed = parser.add_subparsers(metavar=metavar)
    for name, command in commands.items():
        if isinstance(command, dict):
            _add_all(listed.add_parser(name, help=ABOUT_TRAIN, description=f"{ABOUT_TRAIN}."), command, "WHAT")
        else:
            _add(listed, name, command)


def _add(listed: Any, name: str, command: type[Command]) -> None:
    about, example = _filled(inspect.getdoc(command) or ""), f"example:\n  {command.EXAMPLE}"
    raw = argparse.RawDescriptionHelpFormatter
    parser = listed.add_parser(name, help=command.ABOUT, description=about, epilog=example, formatter_class=raw)
    parser.set_defaults(command=command, listed=None)
    parser.settings = getattr(command, "SETTINGS", None)
    for field in _own_first(command):
        how = dict(field.metadata["how"])
        if field.default is not dataclasses.MISSING:
            how["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        flag = field.name if field.metadata["positional"] else "--" + field.name.replace("_", "-")
        if how.get("type") in METAVARS:
            how.setdefault("metavar", METAVARS[how["type"]])
        parser.add_argument(flag, help=field.metadata["help"], **how)


def _own_first(command: type[Command]) -> list[dataclasses.Field]:
    """Its options: those that it declares, then those it shares with other commands."""
    fields = {field.name: field for field in dataclasses.fields(command)}
    order = dict.fromkeys(name for cls in command.__mro__ for name in vars(cls).get("__annotations__", {}))
    return [fields[name] for name in order if name in fields]


def _filled(text: str) -> str:
    """Paragraphs in lines that fit a terminal."""
    return "\n\n".join(textwrap.fill(part, WIDTH) for part in text.split("\n\n"))


def settings_help(where: str) -> str:
    """Every setting of a dataclass ("module:class") and of those in it: name, default, and what its docstring says."""
    module, name = where.split(":")
    cls = getattr(importlib.import_module(module), name)
    return "\nsettings, with their defaults as in YAML (null is None):\n" + "\n".join(_settings(cls, "")) + "\n"


def _settings(cls: type, prefix: str) -> list[str]:
    lines, parts, told = [], [], documented(cls)
    fields = dataclasses.fields(cls)
    for field, following in zip(fields, (*fields[1:], None), strict=True):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if dataclasses.is_dataclass(default):
            parts += ["", *_settings(type(default), f"{prefix}{field.name}.")]
            continue
        value = "   (required)" if default is dataclasses.MISSING else _as_yaml(default)
        lines += textwrap.wrap(f"{prefix}{field.name}={value}", WIDTH, initial_indent="  ", subsequent_indent="    ")
        text = told.get(field.name, "")
        if following is None or told.get(following.name, "") != text:  # fields in a row may share a text
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines + parts


def documented(cls: type) -> dict[str, str]:
    """What the section "Attributes" of a docstring says of each field; fields may share a text ("lr, steps: ...")."""
    text = " ".join((inspect.getdoc(cls) or "").partition("Attributes:")[2].split())
    names = "|".join(f.name for f in dataclasses.fields(cls))
    parts = re.split(rf"(?:^|(?<=[.;:)]) )((?:{names})(?:, (?:{names}))*): ", text)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {name: told.strip(" ;") for some, told in pairs for name in some.split(", ")}


def _as_yaml(value: Any) -> str:
    """As it would be written in a file of settings: true, null, [1, 2]."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_as_yaml(x)}" for name, x in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
