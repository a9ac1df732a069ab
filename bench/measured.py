"""What the measuring programs share: their command line, and the time of the tokens that stream out of a run."""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from sparrow.cli.loading import quiet
from sparrow.files import write_json
from sparrow.provenance import provenance


class Stamps:
    """A streamer that remembers the time of each token.

    Args:
        clock: time.process_time for this process' CPU seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.at: list[float] = []

    def put(self, value: object) -> None:
        self.at.append(self.clock())

    def end(self) -> None:
        pass

    @property
    def rate(self) -> float | None:
        """Tokens per second behind the first; None where there is none."""
        made = len(self.at) - 2  # the prompt, and the first token
        return made / (self.at[-1] - self.at[1]) if made > 0 else None


def program(
    name: str, about: str, options: dict[str, Any], measure: Callable[..., dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:  # fmt: skip
    """The command line: measures, saves with provenance, prints the table; or prints that of a saved result. Returns
    the result.

    Args:
        name: of the module, for the provenance; about: its docstring.
        options: name -> default, or the keyword arguments of add_argument; `measure` gets them by name. "threads" is
            set here, 1 where it is no option.
        measure: returns what is saved.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in options.items():
        how = default if isinstance(default, dict) else {"default": default, "type": type(default)}
        parser.add_argument(f"--{option}", **how)
    parser.add_argument("--save", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path, help="of a saved result")
    values = vars(parser.parse_args())
    save, saved = values.pop("save"), values.pop("table")
    if saved:
        print(table(result := json.loads(saved.read_text())))
        return result
    quiet()
    threads = values.pop("threads", 1)
    torch.set_num_threads(threads)
    made = provenance(" ".join(["python -m", name, *sys.argv[1:]]))  # of the code that runs
    result = {"provenance": made, "threads": threads, **measure(**values)}
    if save:
        write_json(save, result, indent=1)
    print(table(result))
    return result
