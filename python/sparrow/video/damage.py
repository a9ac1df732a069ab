"""Reading past damage: which frames of a film can be decoded whole, and those frames."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from sparrow.video.container import CONTAINERS, opened
from sparrow.video.info import VideoError
from sparrow.video.packets import Packets

# pictures that a decoder may hold back at most, to show them in their order (H.264 and HEVC: 16)
MOST_DELAYED = 16


def be_careful(stream: Any) -> None:
    """Has the decoder report what it would otherwise paint over, at the packet where it lies."""
    stream.thread_type = "NONE"
    stream.codec_context.options = {"err_detect": "explode"}


def find_whole(path: Path, packets: Packets) -> tuple[list[int], int, tuple[str, ...]]:
    """Decodes the whole film once.

    Returns:
        Source indices of the frames that are whole, ascending; frames of the film; what is lost, a sentence each.

    Raises:
        VideoError: no frame is whole.
    """
    keys: list[tuple[int, int]] = []
    # what is lost before a packet lies between it and the one before
    bad: set[float] = {gap.before - 0.5 for gap in packets.gaps}
    doubted: set[int] = set()
    origins: dict[int, _Origin] = {}
    for number, packet, frames, fault in _decoded(path, packets):
        if packet.is_keyframe:
            keys.append((number, packet.pts or 0))
        if packet.is_corrupt and packet.size:
            doubted.add(number)
        if fault:
            bad.add(number)
        for index, frame, origin in frames:
            origins[index] = origin
            if frame.is_corrupt:
                bad.add(origin.last)
    bad |= doubted - {origin.last for origin in origins.values()}
    total, faults = max(len(packets.pts), max(origins, default=-1) + 1), sorted(bad)
    whole = [index for index, origin in sorted(origins.items()) if not _spoiled(origin, faults, keys)]
    if not whole:
        raise VideoError(f"{path} is truncated or corrupt: no frame of it can be decoded whole")
    return whole, total, _sentences(sorted(set(range(total)) - set(whole)), packets, len(bad))


def frames_past_damage(path: Path, packets: Packets) -> Iterator[tuple[int, Any]]:
    """(source index, frame) of every frame that the decoder gives, damaged ones too."""
    for _, _, frames, _ in _decoded(path, packets):
        for index, frame, _ in frames:
            yield index, frame


class _Origin(NamedTuple):
    """Between which packets a frame's own lies, by their numbers, both included; the frame's time."""

    first: int
    last: int
    pts: int


def _decoded(path: Path, packets: Packets) -> Iterator[tuple[int, Any, list[tuple[int, Any, _Origin]], bool]]:
    """(number of a packet, the packet, frames that came with their source index and origin, whether it is damaged).

    Where frames have no distinct times, the source index is the frame's number among those that came.
    """
    decoded = 0
    numbers: dict[int, int] = {}
    with opened(path, CONTAINERS, "a video") as (container, stream):
        be_careful(stream)
        source = enumerate(container.demux(stream))
        while True:
            try:
                number, packet = next(source)
            except (StopIteration, av.FFmpegError):
                # packets.cut says so already
                return
            if packet.pts is not None:
                numbers[packet.pts] = number
            try:
                frames, fault = packet.decode(), False
            except av.FFmpegError:
                frames, fault = [], True
            found = []
            for frame in frames:
                if frame.pts in numbers:
                    origin = _Origin(numbers[frame.pts], numbers[frame.pts], frame.pts)
                elif len(packets.pts):
                    # in no packet: made up by the decoder
                    continue
                else:
                    origin = _Origin(max(0, number - MOST_DELAYED), number, 0)
                index = int(np.searchsorted(packets.pts, origin.pts)) if len(packets.pts) else decoded
                found.append((index, frame, origin))
                decoded += 1
            yield number, packet, found, fault


def _spoiled(origin: _Origin, faults: list[float], keys: list[tuple[int, int]]) -> bool:
    """Whether a frame is damaged, or may be drawn from one that is.

    It may be drawn from any packet since the last key; and since the key before that, if it shows before the last.
    """
    last = bisect_right(keys, origin.first, key=lambda key: key[0]) - 1
    if last >= 0 and origin.pts < keys[last][1]:
        last -= 1
    since = keys[last][0] if last >= 0 else 0
    return bisect_left(faults, since) < bisect_right(faults, origin.last)


def _sentences(lost: list[int], packets: Packets, bad: int) -> tuple[str, ...]:
    sentences = [f"what follows at {gap.second:.2f} s is damaged, some of it may be lost" for gap in packets.gaps]
    breaks = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(lost)) if b > a + 1), len(lost)]
    for i, j in pairwise(breaks):
        if i == j:
            continue
        first, last = lost[i], lost[j - 1]
        place = f"frame {first}" if first == last else f"frames {first} to {last}"
        if len(packets.pts):
            place += " ({:.2f} to {:.2f} s)".format(*(float(packets.pts[k] * packets.time_base) for k in (first, last)))
        sentences.append(f"{place} cannot be decoded whole")
    return tuple(sentences) or (f"{bad} packets cannot be decoded",)
