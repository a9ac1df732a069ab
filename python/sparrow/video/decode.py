"""Video files and still pictures to RGB frames, through PyAV.

Frames stand upright: a rotation stored in the file is applied, as players and torchcodec do. Frames are counted by
index in the order they show, as in transformers, so a clip of variable rate is sampled evenly in frames, not in time.
Decoding begins at the key frame before a wanted frame; where that cannot be trusted, at the start.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from sparrow.video.container import CONTAINERS, PICTURES, DamagedVideoError, opened, reason
from sparrow.video.damage import be_careful, find_whole, frames_past_damage
from sparrow.video.info import MAX_BYTES, Progress, VideoError, VideoInfo
from sparrow.video.packets import Key, Packets, read_packets
from sparrow.video.upright import upright_rgb

Choose = Callable[[int, float | None, np.ndarray], tuple[int, ...]]
# Decoding this many unwanted frames is cheaper than a seek, which drains the decoder's threads.
SEEK_COST = 8


def decode_file(
    path: Path,
    choose: Choose,
    source_fps: float | None = None,
    progress: Progress | None = None,
    on_damage: str = "raise",
) -> tuple[np.ndarray, VideoInfo]:
    """Decodes the frames that `choose` picks.

    Args:
        path: an existing file.
        choose: (number of frames, frames per second or None, when each shows in seconds from the first on, float64, or
            an empty array) -> ascending indices.
        source_fps: frames per second of a file that does not say.
        progress: called with (frames kept, frames wanted) after each kept frame.
        on_damage: "raise"; or "skip": `choose` picks among the frames that can be decoded whole.

    Returns:
        uint8 [T, H, W, 3] and where the frames lie.

    Raises:
        VideoError: not a video, damaged, empty, or too large to hold in memory.
    """
    packets = read_packets(path)
    if packets.cut is not None and on_damage == "raise":
        raise VideoError(f"{path} is truncated or corrupt: {packets.cut}")
    if source_fps is not None and packets.fps is not None:
        raise VideoError(f"source_fps must not be given for a video with its own rate, {path} has {packets.fps:.3f}")
    fps = packets.fps or source_fps
    skipped: tuple[str, ...] = () if packets.cut is None else (packets.cut,)
    try:
        if packets.gaps:
            raise DamagedVideoError(
                f"{path} is truncated or corrupt: what follows at {packets.gaps[0].second:.2f} s is damaged"
            )
        frames, total, indices = _decode_chosen(path, packets, choose, fps, progress)
    except DamagedVideoError:
        if on_damage == "raise":
            raise
        whole, total, lost = find_whole(path, packets)
        seconds = packets.seconds if whole[-1] < len(packets.pts) else np.empty(0)
        chosen = choose(len(whole), fps, seconds[whole] if len(seconds) else seconds)
        indices, skipped = tuple(whole[i] for i in chosen), lost + skipped
        frames = _whole(path, packets, indices, progress)
    return frames, VideoInfo(total, fps, indices, frames.shape[1], frames.shape[2], skipped)


def _decode_chosen(
    path: Path, packets: Packets, choose: Choose, fps: float | None, progress: Progress | None
) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """(frames, frames of the file, indices) of a file without damage."""
    total, seconds = packets.total, packets.seconds
    if packets.lead:
        _, total = _from_start(path, packets, None, None)
    indices = choose(total, fps, seconds if len(seconds) == total else seconds[:0])
    frames = _sought(path, packets, indices, progress) if packets.seekable else None
    if frames is None:
        frames, decoded = _from_start(path, packets, indices, progress)
        if decoded <= indices[-1]:
            # not every packet gives a frame; decoding ended in good order, so this number is true
            total, indices = decoded, choose(decoded, fps, seconds[:0])
            frames, _ = _from_start(path, packets, indices, progress)
    return frames, total, indices


def decode_picture(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a png, jpeg, bmp or webp file, upright; transparency is dropped."""
    with opened(path, PICTURES, "a picture") as (container, _):
        for frame in container.decode(video=0):
            return upright_rgb(frame)
    raise VideoError(f"{path} holds no decodable picture")


class _Kept:
    """The frames wanted, as they come."""

    def __init__(self, path: Path, indices: tuple[int, ...], progress: Progress | None) -> None:
        self.path, self.indices, self.progress = path, indices, progress
        self.frames, self.count = np.empty((0, 0, 0, 3), np.uint8), 0

    @property
    def done(self) -> bool:
        return self.count == len(self.indices)

    def offer(self, index: int, frame: Any) -> None:
        """Takes the frame as often as it is wanted; frames come in ascending order."""
        while not self.done and self.indices[self.count] == index:
            rgb = upright_rgb(frame)
            if self.count == 0:
                self.frames = _allocate(self.path, len(self.indices), rgb.shape)
            if rgb.shape != self.frames.shape[1:]:
                raise VideoError(
                    f"{self.path} must have frames of one size, frame {index} is {rgb.shape[0]}x{rgb.shape[1]} "
                    f"after {self.frames.shape[1]}x{self.frames.shape[2]}"
                )
            self.frames[self.count] = rgb
            self.count += 1
            if self.progress is not None:
                self.progress(self.count, len(self.indices))


# ---- from the key frames


def _sought(path: Path, packets: Packets, indices: tuple[int, ...], progress: Progress | None) -> np.ndarray | None:
    """The frames, decoded from the key frame before each; None where what came was not what the packets announced.

    Then the file is decoded from its start, which gives the frames or names the damage.
    """
    kept = _Kept(path, indices, progress)
    starts = np.searchsorted(packets.pts, [key.pts for key in packets.keys])
    with opened(path, CONTAINERS, "a video") as (container, stream):
        frames, position = _frames_from(container, stream, None), 0
        try:
            for index in indices:
                key = int(np.searchsorted(starts, index, side="right")) - 1
                if starts[key] > position + SEEK_COST:
                    frames, position = _frames_from(container, stream, packets.keys[key]), int(starts[key])
                while position <= index:
                    frame = next(frames, None)
                    if frame is None or frame.pts != packets.pts[position] or frame.is_corrupt:
                        return None
                    kept.offer(position, frame)
                    position += 1
        except av.FFmpegError:
            return None
    return kept.frames


def _frames_from(container: Any, stream: Any, key: Key | None) -> Iterator[Any]:
    """Frames from `key` on, those that show before it left out; None = from the start."""
    begun = key is None
    if key is not None:
        container.seek(key.seek, stream=stream)
    for packet in container.demux(stream):
        if key is not None and not begun:
            # a seek may end anywhere before the key
            begun = packet.is_keyframe and (packet.pts, packet.size) == key[:2]
            if not begun and packet.is_keyframe and packet.pts is not None and packet.pts > key.pts:
                return
        if begun:
            for frame in packet.decode():
                if key is None or frame.pts is None or frame.pts >= key.pts:
                    yield frame


# ---- from the start


def _from_start(
    path: Path, packets: Packets, indices: tuple[int, ...] | None, progress: Progress | None
) -> tuple[np.ndarray, int]:
    """(frames uint8 [T, H, W, 3], frames decoded): up to the last index, fewer if the file ends before it.

    With `indices` None: no frame kept, all decoded.
    """
    kept, decoded, second = _Kept(path, indices or (), progress), 0, 0.0
    doubted: dict[int | None, float] = {}
    with opened(path, CONTAINERS, "a video") as (container, stream):
        if packets.flagged:
            be_careful(stream)
        elif packets.lead:
            # threads would report what they cannot decode some packets late
            stream.thread_type = "NONE"
        for number, packet in enumerate(container.demux(stream)):
            second = second if packet.pts is None else float(packet.pts * packet.time_base)
            # what is drawn from frames before the recording began is nobody's loss
            lead = number < packets.lead
            if packet.is_corrupt and packet.size and not lead:
                doubted[packet.pts] = second
            for frame in _decode(path, packet, second, decoded, lead):
                # FFmpeg doubts a packet for bytes that are missing anywhere: this one's frame is whole
                doubted.pop(frame.pts, None)
                kept.offer(decoded, frame)
                decoded += 1
                if indices is not None and kept.done:
                    return kept.frames, _all_came(path, doubted, frame.pts, decoded)
    return kept.frames[: kept.count], _all_came(path, doubted, None, decoded)


def _decode(path: Path, packet: Any, second: float, decoded: int, lead: bool) -> Iterator[Any]:
    """The packet's frames, none of them damaged; of one from before the first key, those that are not."""
    try:
        for frame in packet.decode():
            if not frame.is_corrupt:
                yield frame
            elif not lead:
                at = second if frame.time is None else frame.time
                raise DamagedVideoError(f"{path} is truncated or corrupt: the frame at {at:.2f} s is damaged")
    except av.FFmpegError as error:
        if not lead:
            raise DamagedVideoError(
                f"{path} is truncated or corrupt: a packet at {second:.2f} s is damaged, after {decoded} frames: "
                f"{reason(error)}"
            ) from error


def _all_came(path: Path, doubted: dict[int | None, float], last: int | None, decoded: int) -> int:
    """`decoded`, if no doubted packet before `last` stayed without a frame: a decoder may drop one without a word."""
    late = [at for pts, at in doubted.items() if last is None or pts is None or pts < last]
    if late:
        raise DamagedVideoError(f"{path} is truncated or corrupt: a packet at {late[0]:.2f} s is damaged")
    if decoded == 0:
        raise DamagedVideoError(f"{path} holds no decodable video frame, or is truncated")
    return decoded


def _whole(path: Path, packets: Packets, indices: tuple[int, ...], progress: Progress | None) -> np.ndarray:
    """The frames at `indices`, past what cannot be decoded."""
    kept = _Kept(path, indices, progress)
    for index, frame in frames_past_damage(path, packets):
        kept.offer(index, frame)
        if kept.done:
            break
    return kept.frames


def _allocate(path: Path, count: int, shape: tuple[int, ...]) -> np.ndarray:
    size = count * shape[0] * shape[1] * shape[2]
    if size > MAX_BYTES:
        raise VideoError(
            f"{path}: {count} frames of {shape[0]}x{shape[1]} take {size / 2**30:.0f} GiB, at most "
            f"{MAX_BYTES >> 30} are read: pass a smaller num_frames or fps"
        )
    return np.empty((count, *shape), np.uint8)
