"""The one writer of files: what was there outlives a full disk, a kill and a crash.

A file or a folder is made beside its place, brought to disk and renamed; a log grows by whole lines.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import platform
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

PathLike = str | os.PathLike[str]
UNFINISHED = ".sparrow-new"  # ends the names of what is being made
STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # of this process: what they lead to must not be replaced by a name


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
    """A path at which to make a file or a folder; when the block ends well, that takes the place of `path`.

    A folder that is there keeps its other files; each of the new ones takes its place whole. Pipes and devices are
    written to as they are.

    Raises:
        OSError: it cannot be written; `path` is named, and is as it was.
    """
    place = pathlib.Path(path)
    if str(place).startswith(STREAMS) or (place.exists() and not place.is_file() and not place.is_dir()):
        with _naming(place, place.parent):
            yield place
        return
    place = pathlib.Path(os.path.realpath(place))
    place.parent.mkdir(parents=True, exist_ok=True)
    with _naming(place, None):
        beside = pathlib.Path(tempfile.mkdtemp(UNFINISHED, f".{place.name}.", place.parent))
    try:
        with _naming(place, beside):
            yield beside / place.name
            _settle(beside / place.name, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _settle(new: pathlib.Path, place: pathlib.Path) -> None:
    made = sorted(new.rglob("*")) if new.is_dir() else []
    for part in (new, *made):
        _sync(part)
    if made and place.is_dir():
        for part in (p for p in made if not p.is_dir()):
            to = place / part.relative_to(new)
            to.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, to)
            _sync(to.parent)
    else:
        if new.is_file() and place.is_file():
            shutil.copymode(place, new)
        os.replace(new, place)
        _sync(place.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems cannot do it for a folder
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(place: pathlib.Path, beside: pathlib.Path | None) -> Iterator[None]:
    """Errors of files that are nameless, or under a passing name in `beside` (None: any), get their right name."""
    try:
        yield
    except OSError as error:
        at = pathlib.Path(str(error.filename)) if error.filename is not None and beside is not None else None
        if at is not None and beside is not None:
            if not at.is_relative_to(beside):
                raise
            place = place.parent / at.relative_to(beside)
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, str(place)) from error
        if type(error) is not OSError:
            raise
        raise OSError(f"cannot write {place}: {error}") from error


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any, indent: int = 2) -> None:
    """Writes JSON.

    Raises:
        ValueError: a number is not finite; nothing is written.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def write_tensors(path: PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors, and words about them, as safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as new:
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                new,
                dict(metadata) if metadata else None,
            )
        except SafetensorError as error:
            raise OSError(str(error)) from error


def write_checkpoint(path: PathLike, state: Mapping[str, Any]) -> None:
    """Writes what torch.load(weights_only=True) reads."""
    import torch

    with replacing(path) as new, new.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # "unexpected pos": an archive cut short; what did that stands behind it
            raise error.__context__ or error from None


def write_figure(path: PathLike, figure: Any, dpi: int, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a figure of matplotlib; the suffix says how. metadata: words that go into the file."""
    with replacing(path) as new:
        figure.savefig(new, dpi=dpi, metadata=metadata)


def append_lines(path: PathLike, lines: Iterable[str]) -> None:
    """Appends lines to a log, all or none; they are on disk on return. What a kill left of a line goes first."""
    place, data = pathlib.Path(path), memoryview("".join(f"{line}\n" for line in lines).encode())
    place.parent.mkdir(parents=True, exist_ok=True)
    with _naming(place, None), place.open("ab+", buffering=0) as file:
        before = _whole_lines(place)
        file.truncate(before)
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise
    if not before:
        _sync(place.parent)


def _whole_lines(place: pathlib.Path) -> int:
    """Bytes up to the end of the last whole line."""
    with place.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) in (b"", b"\n"):
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1


def read_json_lines(path: PathLike) -> Iterator[tuple[int, Any]]:
    """(number, value) of each whole line; what a kill left of the last one is no line.

    Raises:
        ValueError: a line is not JSON; file and line are named.
    """
    for number, line in enumerate(pathlib.Path(path).read_bytes().split(b"\n")[:-1], 1):
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from None


def read_json(path: PathLike) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        ValueError: it holds none; the file is named.
    """
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it must hold an object, got {str(value)[:80]}")
    return value


def sweep(folder: pathlib.Path, start: str = ".") -> None:
    """Removes what killed processes left half written in a folder. Only under its lock: it may be another's work."""
    for left in folder.iterdir() if folder.is_dir() else ():
        if left.name.startswith(start) and left.name.endswith(UNFINISHED):
            shutil.rmtree(left)


class Lock:
    """Keeps other processes off a file or a folder until it is forgotten; see `lock`."""

    def __init__(self, place: pathlib.Path):
        name = place / ".lock" if place.is_dir() else place.with_name(f".{place.name}.lock")
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not kept by orphaned children
        except (BlockingIOError, PermissionError):
            holder = name.read_text() or "another process"
            raise BlockingIOError(f"{place} is in use by {holder}: wait for it, or choose another place") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        sweep(name.parent, "." if place.is_dir() else f".{place.name}.")

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        """The last one to forget it lets go."""


_held: weakref.WeakValueDictionary[tuple[int, pathlib.Path], Lock] = weakref.WeakValueDictionary()


def lock(path: PathLike) -> Lock:
    """Locks a file or a folder for this process; what killed processes left half written there is removed.

    Held as long as the result is, however often this process asks. It ends with the process, whatever ends that.

    Raises:
        BlockingIOError: another process holds it; both are named.
    """
    place = pathlib.Path(os.path.realpath(path))
    (place if place.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
    key = os.getpid(), place
    held = _held.get(key) or Lock(place)
    _held[key] = held
    return held
