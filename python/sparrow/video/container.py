"""Opening a video file or a picture: which formats are read, which stream is the film, whether the file was cut off."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.stream import Disposition

from sparrow.video.info import VideoError
from sparrow.video.matroska import is_matroska, segment_end

# Only formats that hold their own data: FFmpeg would also follow playlists to other files and to the network, and take
# text for a video.
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,ivf,h264,hevc,mxf,nut,yuv4mpegpipe"
PICTURES = "png_pipe,jpeg_pipe,bmp_pipe,webp_pipe"
# Pictures that go with a film or a song.
NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails
BOXES = (b"mdat", b"moov", b"moof", b"free", b"skip", b"wide", b"ftyp", b"styp", b"sidx", b"mfra", b"uuid", b"udta")


class DamagedVideoError(VideoError):
    """The file is damaged: reading past it may help."""


@contextmanager
def opened(path: Path, formats: str, kind: str) -> Iterator[tuple[Any, Any]]:
    """The open container and its film; FFmpeg's errors become VideoErrors that name the file."""
    try:
        # "file:", or FFmpeg would read a name like "concat:a" as a protocol
        name = f"file:{path.resolve()}"
        try:
            container = av.open(name, options={"format_whitelist": formats}, metadata_errors="replace")
        except av.FFmpegError as error:
            raise VideoError(f"{path} is not {kind} that can be read, or is truncated: {reason(error)}") from error
        with container:
            stream = _film(path, container)
            stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        raise DamagedVideoError(f"{path} is truncated or corrupt: {reason(error)}") from error


def reason(error: Exception) -> str:
    """FFmpeg's own words."""
    return str(getattr(error, "strerror", None) or error)


def _film(path: Path, container: Any) -> Any:
    """The stream FFmpeg calls best among those that are films: no cover, no thumbnails, a codec it knows."""
    streams = list(container.streams.video)
    films = [s for s in streams if not s.disposition & NO_FILM]
    if streams and not films:
        raise VideoError(f"{path} has no film in it: its only picture is a cover or a thumbnail")
    # without a codec context the codec is one that FFmpeg does not know
    films = [s for s in films if s.codec_context is not None and s.width]
    if not films:
        raise VideoError(f"{path} has no readable video stream, or is truncated")
    best = container.streams.best("video")
    if best is not None and any(s.index == best.index for s in films):
        return best
    return next((s for s in films if s.disposition & Disposition.default), films[0])


def missing_bytes(path: Path) -> int:
    """How many bytes the file lacks of what its own structure names; 0 where it is whole, or where that isn't known.

    Looked at: the boxes of mp4 and mov, the segment of Matroska and WebM, the RIFF chunks of avi and webp.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if is_matroska(head):
            end = segment_end(path)
        elif head[:4] == b"RIFF":
            end = _chunks_end(file, size)
        elif head[4:8] in BOXES:
            end = _boxes_end(file, size)
        else:
            return 0
    return max(0, end - size)


def _boxes_end(file: BinaryIO, size: int) -> int:
    """ISO/IEC 14496-12, 4.2: a size of 32 bits and a tag; size 1: 64 bits follow; 0: up to the end of the file."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length, tag = int.from_bytes(head[:4], "big"), head[4:8]
        if tag not in BOXES or length == 0:
            # trailing bytes that are no box promise nothing
            return at
        length = int.from_bytes(head[8:16], "big") if length == 1 else length
        at += max(length, 8)
    return at


def _chunks_end(file: BinaryIO, size: int) -> int:
    """RIFF: tag, size, even padding; a long avi is several RIFF chunks in a row."""
    at = end = 0
    while at < size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        # 0 and the largest are written by recorders that never came back to fill it in
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return end
        end = at + 8 + length
        at = end + length % 2
    return end
