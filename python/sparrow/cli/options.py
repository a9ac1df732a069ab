"""What an option of the command line is, and the values it may have; nothing heavy is imported."""

import argparse
import dataclasses
import math
from typing import Any

from sparrow.tree import TreeConfig

MIN_TEMPERATURE, MAX_FLOAT32 = 1e-30, 3.4028234e38  # as in sampling.py, which needs torch
MAX_INT32 = 2**31 - 1


def option(help: str, *, default: Any = dataclasses.MISSING, positional: bool = False, **how: Any) -> Any:
    """A field that is the option --its-name, or a positional argument; `how` goes to argparse's add_argument."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": positional, "how": how})


def positive(text: str) -> int:
    """A number of things."""
    value = int(text)
    if not 1 <= value <= MAX_INT32:
        raise argparse.ArgumentTypeError(f"must lie in [1, {MAX_INT32}], got {value}")
    return value


def count_or_file(text: str) -> int | str:
    """A number of things, or a file that holds them."""
    return positive(text) if text.lstrip("+-").isdigit() else text


def shape(text: str) -> TreeConfig:
    """A tree."""
    try:
        return TreeConfig.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def shape_or_word(text: str) -> TreeConfig | str:
    """A tree, "auto" or "own"."""
    return text if text in ("auto", "own") else shape(text)


def shape_or_choice(text: str) -> TreeConfig | str:
    """The same, or "fastest"."""
    return text if text == "fastest" else shape_or_word(text)


def check_temperature(value: float) -> None:
    """Raises ValueError for a temperature the operators do not take."""
    if not 0 <= value < math.inf:
        raise ValueError(f"--temperature must be at least 0 and finite, got {value}")
    if value and not MIN_TEMPERATURE <= value <= MAX_FLOAT32:
        raise ValueError(f"--temperature must be 0 or lie in [{MIN_TEMPERATURE:g}, {MAX_FLOAT32:g}], got {value}")


def check_seed(value: int) -> None:
    """Raises ValueError for a seed the operators do not take."""
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"--seed must be an integer of 64 bits, got {value}")
