"""Paths as users write them: checked to be regular files or folders before anything opens them."""

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote

from sparrow.video.info import VideoError

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a folder",
}
SHOWN = 200


def to_path(source: str | Path, name: str = "source", what: str = "video") -> Path:
    """The existing regular file or folder that `source` names, as a path or a file:// address.

    Args:
        source: a path; of an address the %xx escapes are decoded.
        name: of the argument, for errors.
        what: it should hold, "video" or "image", for errors.

    Raises:
        FileNotFoundError: nothing is there.
        VideoError: an address elsewhere, an empty path, or something else than a file or a folder: a FIFO or a device
            would be waited for.
    """
    path = Path(_local(source, name))
    found = status(path, name, source, what)
    mode = found.st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise VideoError(f"{name} must be a regular file or a folder, {shown(source)} is {kind(mode)}")
    if stat.S_ISREG(mode) and found.st_size == 0:
        # also what the kernel shows as a file and may wait to fill, as /proc/kmsg
        kinds = "an image" if what == "image" else "a video, nor frames"
        raise VideoError(f"{source} is not {kinds}: the file is empty")
    return path


def status(path: Path, name: str, source: str | Path, what: str = "video") -> os.stat_result:
    """What stat says; a FileNotFoundError or VideoError that shows `source` where there is none."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        file = f"{what} file" if what == "image" else f"{what} file or folder"
        raise FileNotFoundError(f"{name} must be an existing {file}, got {shown(source)}") from error
    except (OSError, ValueError) as error:
        # a name too long, no permission, a loop of links; ValueError: a NUL, or characters no file name can have
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{name} must be a path that can be read, got {shown(source)}: {reason}") from error


def kind(mode: int) -> str:
    """What a mode stands for, in words."""
    return KINDS.get(stat.S_IFMT(mode), "no regular file")


def shown(source: str | Path) -> str:
    """`source` for an error: quoted, cut where it is long."""
    text = str(source)
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}... ({len(text)} characters)"


def _local(source: str | Path, name: str) -> str:
    text = os.fspath(source)
    if not text:
        raise VideoError(f"{name} must be a path, got an empty one")
    if re.match(r"(?i)data:", text):
        raise VideoError(f"{name} must be on disk, data addresses are not read, got {shown(text)}")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is None:
        return text
    if scheme[1].lower() != "file":
        raise VideoError(f"{name} must be on disk, addresses are not fetched, got {shown(text)}")
    rest = re.sub(r"(?i)^localhost(?=/)", "", text[scheme.end() :])
    if not rest.startswith("/"):
        raise VideoError(f"{name} must name a file of this machine, as file:///folder/clip.mp4, got {shown(text)}")
    return unquote(rest, errors="surrogateescape")
