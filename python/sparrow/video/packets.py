"""When every frame of a film shows and where decoding can begin, from its packets alone, without decoding."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.format import Flags

from sparrow.video.container import CONTAINERS, missing_bytes, opened, reason
from sparrow.video.info import VideoError
from sparrow.video.matroska import broken_places

# Codecs of which a key frame starts afresh, so that decoding may begin there (with those whose frames all stand alone).
SEEKABLE = frozenset(
    [
        "av1",
        "ffv1",
        "flv1",
        "h263",
        "h264",
        "hevc",
        "mpeg1video",
        "mpeg2video",
        "mpeg4",
        "msmpeg4v2",
        "msmpeg4v3",
        "theora",
        "vp8",
        "vp9",
        "wmv1",
        "wmv2",
    ]
)
# Where FFmpeg itself sees a new clock in a stream that may have several (seconds); and how many times the usual step
# that must be, so that slides are no new clocks.
BACK, AHEAD, UNUSUAL = -0.1, 10.0, 100


class Key(NamedTuple):
    """A packet at which decoding can begin: pts and size tell it from others, `seek` is where to seek for it."""

    pts: int
    size: int
    seek: int


class Gap(NamedTuple):
    """A place between packets: how many come before it, the second at which they end."""

    before: int
    second: float


@dataclass(frozen=True)
class Packets:
    """What the packets of a film say of its frames.

    Attributes:
        total: frames, if each packet is one.
        lead: packets before the first key, in the order of the file: a recording that begins amid a film has them, and
            they may give no frame.
        fps: frames over the time they span; None where the file has no clock.
        pts: int64 [total], the time of each frame in units of the stream, ascending; empty where times are missing or
            not distinct.
        time_base: seconds in a unit of `pts`.
        keys: packets at which decoding can begin, ascending; the first is the first packet of the film.
        seekable: whether decoding may begin at any key.
        flagged: whether FFmpeg doubts a packet: bytes of it may be missing.
        gaps: where bytes between packets are damaged, so that some may be lost.
        cut: what is missing at the end of the file, in words; None where nothing is.
    """

    total: int
    lead: int
    fps: float | None
    pts: np.ndarray
    time_base: Fraction
    keys: tuple[Key, ...]
    seekable: bool
    flagged: bool
    gaps: tuple[Gap, ...]
    cut: str | None

    @property
    def seconds(self) -> np.ndarray:
        """float64 [total], when each frame shows, counted from the first; empty as `pts`."""
        return (self.pts - self.pts[:1]) * float(self.time_base)


def read_packets(path: Path) -> Packets:
    """Reads all packets of a file's film.

    Raises:
        VideoError: not a video, or one without a single packet.
    """
    with opened(path, CONTAINERS, "a video") as (container, stream):
        if stream.frames > path.stat().st_size:
            # before anybody counts to two billion
            raise VideoError(f"{path} is corrupt: its header promises {stream.frames} frames, more than it has bytes")
        rows, keys, lead, flagged, cut = _read(container, stream)
        if not rows:
            raise VideoError(f"{path} holds no decodable video frame, or is truncated{': ' + cut if cut else ''}")
        table = np.array(rows, np.int64)
        clock, shown = _Clock(container, stream), table[table[:, SHOWN] > 0]
        if len(shown) == 0:
            raise VideoError(f"{path} holds no decodable video frame, its edit list hides every one")
        pts, codec = np.sort(shown[:, PTS]), stream.codec_context.codec
        known = UNKNOWN not in table[:, PTS] and clock.stretches(table) == 1 and not _may_be_fields(container, stream)
        distinct = known and bool((np.diff(pts) > 0).all())
        seekable = (
            distinct
            and not flagged
            and cut is None
            and (codec.canonical_name in SEEKABLE or codec.intra_only)
            and lead == 0
            and bool(keys)
            and keys[0].pts == table[0, PTS] == table[:, PTS].min()
        )
        cut = cut or _unkept_promise(path, stream, clock.end(table))
        return Packets(
            total=len(shown),
            lead=lead,
            fps=clock.fps(shown),
            pts=pts if distinct else pts[:0],
            time_base=stream.time_base,
            keys=_seekable_from(container, sorted(keys)),
            seekable=seekable,
            flagged=flagged,
            gaps=tuple(
                Gap(before := int((table[:, POS] < place).sum()), clock.end(table[:before]))
                for place in _broken(path, container)
            ),
            cut=cut,
        )


# Columns of the table of packets, in the order of the file.
PTS, DTS, DURATION, SHOWN, POS = range(5)
UNKNOWN = -(1 << 63)


Row = tuple[int, int, int, bool, int]


def _read(container: Any, stream: Any) -> tuple[list[Row], list[Key], int, bool, str | None]:
    """(rows of the table, keys, packets before the first key, flagged, what ended the file early)."""
    rows: list[Row] = []
    keys: list[Key] = []
    lead, flagged = None, False
    hides = stream.codec_context.codec.canonical_name == "vp8"
    try:
        for packet in container.demux(stream):
            # the demuxer closes with an empty packet, and an avi has one for every frame that was dropped
            if packet.size == 0:
                continue
            pts, dts = packet.pts, packet.dts
            flagged |= packet.is_corrupt
            # an edit list discards what it hides; RFC 6386, 9.1: bit 4 of a frame's first byte says whether it shows
            shown = not packet.is_discard and not (hides and not memoryview(packet)[0] & 16)
            times = UNKNOWN if pts is None else pts, UNKNOWN if dts is None else dts, packet.duration or 0
            rows.append((*times, shown, -1 if packet.pos is None else packet.pos))
            if lead is None and packet.is_keyframe:
                lead = len(rows) - 1
            if packet.is_keyframe and pts is not None:
                keys.append(Key(pts, packet.size, pts if dts is None else min(pts, dts)))
    except av.FFmpegError as error:
        return rows, keys, lead or 0, flagged, f"after {len(rows)} packets: {reason(error)}"
    return rows, keys, lead or 0, flagged, None


def _may_be_fields(container: Any, stream: Any) -> bool:
    """Whether two packets may be the fields of one frame: FFmpeg itself cuts these formats, by pictures."""
    unknown, progressive = 0, 1
    cut_by_pictures = container.format.name in ("mpegts", "mpeg", "mpegvideo", "h264", "hevc")
    return cut_by_pictures and stream.codec_context.field_order not in (unknown, progressive)


def _broken(path: Path, container: Any) -> list[int]:
    return broken_places(path) if "matroska" in container.format.name else []


def _seekable_from(container: Any, keys: list[Key]) -> tuple[Key, ...]:
    """The keys, each to be sought at the one before where the container has no index: there a seek may end late."""
    if not container.format.flags & Flags.ts_discont.value:
        return tuple(keys)
    return tuple(key._replace(seek=before.seek) for before, key in zip(keys[:1] + keys, keys, strict=False))


class _Clock:
    """The time that packets span."""

    def __init__(self, container: Any, stream: Any) -> None:
        flags = container.format.flags
        self.base: Fraction = stream.time_base
        self.restarts = bool(flags & Flags.ts_discont.value)
        # an avi has one slot after the other for its packets, and FFmpeg guesses the rest
        self.column = DTS if container.format.name == "avi" else PTS
        # a bare stream has no times but those FFmpeg makes up: 25 a second, whatever the stream says
        self.own = not flags & Flags.no_timestamps.value
        self.guess = stream.codec_context.framerate or stream.average_rate or stream.guessed_rate

    def fps(self, table: np.ndarray) -> float | None:
        """Frames per second: the frames whose time is known, over the time they span."""
        known = table[table[:, self.column] != UNKNOWN]
        span = sum(end - begin for begin, end in map(self._span, self._split(known))) if self.own else 0.0
        if span > 0:
            return len(known) / span
        return float(self.guess) if self.guess else None

    def end(self, table: np.ndarray) -> float:
        """Seconds at which the last frame ends."""
        known = table[table[:, self.column] != UNKNOWN]
        return max((end for _, end in map(self._span, self._split(known))), default=0.0)

    def stretches(self, table: np.ndarray) -> int:
        """How many clocks follow each other: more than one where recordings were joined."""
        return len(self._split(table))

    def _split(self, table: np.ndarray) -> list[np.ndarray]:
        if not self.restarts or len(table) == 0:
            return [table] if len(table) else []
        times = np.where(table[:, DTS] != UNKNOWN, table[:, DTS], table[:, PTS])
        steps = np.diff(times) * float(self.base)
        ahead = max(AHEAD, UNUSUAL * float(np.median(np.abs(steps)))) if len(steps) else AHEAD
        return np.split(table, np.flatnonzero((steps < BACK) | (steps > ahead)) + 1)

    def _span(self, table: np.ndarray) -> tuple[float, float]:
        """Seconds from the first frame to the end of the last."""
        times = table[:, self.column]
        first, end = int(times.min()), int((times + table[:, DURATION]).max())
        # in this order, as torchcodec: a rounding more or less moves a sampled index
        return first * self.base.numerator / self.base.denominator, end * self.base.numerator / self.base.denominator


def _unkept_promise(path: Path, stream: Any, end: float) -> str | None:
    """What the header promises and the file, which lacks bytes, does not hold.

    A duration alone is no evidence: cutting tools leave old ones behind. Nor are missing bytes: they may be an index.
    """
    lacking = missing_bytes(path)
    if lacking == 0:
        return None
    if stream.duration is not None:
        declared = float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    else:
        # Matroska's tag per track, "HH:MM:SS.fraction"
        parts = stream.metadata.get("DURATION", "").split(":")
        try:
            hours, minutes, seconds = (float(part) for part in parts)
        except ValueError:
            return f"it ends at {end:.2f} s, {lacking} bytes of it are missing"
        declared = 3600 * hours + 60 * minutes + seconds
    if declared - end > max(3 / float(stream.average_rate or 1), 0.01 * declared):
        return f"its header promises {declared:.2f} s of video, {end:.2f} s are there"
    return None
