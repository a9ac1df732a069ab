"""The `sparrow` command: what is wrong is one line on stderr and an exit code, at any moment."""

from __future__ import annotations

import io
import os
import signal
import sys

TYPE_CHECKING = False  # `typing` is slow to import: Ctrl-C is to be one line as soon as can be
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TextIO

FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Errors are one line on stderr; --debug shows the traceback.

    Args:
        argv: None = the process' own; Ctrl-C then ends it with one line from the first import on.

    Raises:
        SystemExit: after --help and --version, and for words that argparse refuses.
    """
    if argv is None:
        sys.stdout = _named(sys.stdout)
    own = argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if own:
        signal.signal(signal.SIGINT, _stop)  # nothing is to be tidied yet, and imports do not take an exception well
    arguments = None
    try:
        from sparrow.cli.parser import parse

        try:
            arguments = parse(argv)
            code = 0
            if arguments is not None:
                command = _command(arguments.RUN)
                if own:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                code = command(arguments)
        finally:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if arguments is not None and arguments.debug:
            raise
        return _interrupted()
    except Exception as error:
        if arguments is not None and arguments.debug:
            raise
        return _failed(error)
    finally:
        if own:
            signal.signal(signal.SIGINT, _stop)  # the interpreter's own end does not take an exception well either


def _command(where: str) -> Callable[[Any], int]:
    from importlib import import_module

    module, name = where.split(":")
    return getattr(import_module(module), name)


def _interrupted() -> int:
    print("\nsparrow: interrupted", file=sys.stderr, flush=True)
    return INTERRUPTED


def _stop(*_: object) -> None:
    os._exit(_interrupted())


class _Stdout(io.FileIO):
    """Descriptor 1; its errors have a name, as a file's have."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter tries once more at its end
            raise OSError(error.errno, error.strerror, "standard output") from None


def _named(stdout: TextIO) -> TextIO:
    """The process' own stdout with errors that name it; any other as it is."""
    if not isinstance(stdout, io.TextIOWrapper) or stdout is not sys.__stdout__ or stdout.fileno() != 1:
        return stdout
    raw, line, through = _Stdout(1, "w", closefd=False), stdout.line_buffering, stdout.write_through
    buffer: Any = raw if through else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, stdout.encoding, stdout.errors, line_buffering=line, write_through=through)


def _failed(error: Exception) -> int:
    if not isinstance(error, BrokenPipeError):  # the reader has what it wanted: `| head`
        print(f"sparrow: {_one_line(error)}", file=sys.stderr)
    return FAILED


def _one_line(error: Exception) -> str:
    """What went wrong, without the parts that are for those who build torch or sparrow."""
    text = " ".join(str(error).partition("\nException raised from ")[0].split())
    name = type(error).__name__
    if name in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in text:
        import re

        asked = re.search(r"tried to allocate (\d+) bytes", text)
        text = f"{int(asked[1]) / 2**30:.1f} GiB were asked for." if asked else text[:200]
        return f"out of memory: {text} Use fewer frames (--num-frames) or new tokens, or a smaller --dtype."
    if not text:
        return f"{name} in {_place(error)}, without a message (--debug shows more)"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename!r}"
    if isinstance(error, (ValueError, OSError, ImportError)):
        return text
    return f"{name}: {text} (--debug shows where)"


def _place(error: Exception) -> str:
    from traceback import extract_tb

    last = extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(last.filename)}, line {last.lineno}"


if __name__ == "__main__":
    sys.exit(main())
