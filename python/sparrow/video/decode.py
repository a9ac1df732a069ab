"""Video files and still pictures to RGB frames, through PyAV.

Frames stand upright: a rotation stored in the file is applied, as players and torchcodec do. Frames are counted by
index, as in transformers, so a clip of variable rate is sampled evenly in frames, not in time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from sparrow.video.info import VideoError, VideoInfo

Choose = Callable[[int, float | None], tuple[int, ...]]
Progress = Callable[[int, int], None]

# Only formats that hold their own data: FFmpeg would also follow playlists to other files and to the network, and take
# text for a video.
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,ivf,h264,hevc,mxf,nut,yuv4mpegpipe"
PICTURES = "png_pipe,jpeg_pipe,bmp_pipe,webp_pipe"
MAX_BYTES = 16 << 30


def decode_file(
    path: Path, choose: Choose, source_fps: float | None = None, progress: Progress | None = None
) -> tuple[np.ndarray, VideoInfo]:
    """Decodes the frames that `choose` picks.

    Args:
        path: an existing file.
        choose: (number of frames, frames per second or None) -> ascending indices.
        source_fps: frames per second of a file that does not say.
        progress: called with (frames kept, frames wanted) after each kept frame.

    Returns:
        uint8 [T, H, W, 3] and where the frames lie.

    Raises:
        VideoError: not a video, damaged, empty, or too large to hold in memory.
    """
    total, own_fps = _count(path)
    if source_fps is not None and own_fps is not None:
        raise VideoError(f"source_fps must not be given for a video with its own rate, {path} has {own_fps:.3f}")
    fps = own_fps or source_fps
    indices = choose(total, fps)
    frames, decoded = _collect(path, indices, progress)
    if decoded <= indices[-1]:
        # not every packet gives a frame; decoding ended in good order, so this number is true
        total, indices = decoded, choose(decoded, fps)
        frames, _ = _collect(path, indices, progress)
    return frames, VideoInfo(total, fps, indices, frames.shape[1], frames.shape[2])


def decode_picture(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a png, jpeg, bmp or webp file; transparency is dropped."""
    with _opened(path, PICTURES, "a picture") as (container, _):
        for frame in container.decode(video=0):
            return _rgb(frame)
    raise VideoError(f"{path} holds no decodable picture")


@contextmanager
def _opened(path: Path, formats: str, kind: str) -> Iterator[tuple[Any, Any]]:
    """The open container and its first video stream; FFmpeg's errors become VideoErrors that name the file."""
    try:
        # "file:", or FFmpeg would read a name like "concat:a" as a protocol
        name = f"file:{path.resolve()}"
        try:
            container = av.open(name, options={"format_whitelist": formats}, metadata_errors="replace")
        except av.FFmpegError as error:
            raise VideoError(f"{path} is not {kind} that can be read, or is truncated: {_reason(error)}") from error
        with container:
            stream = next(iter(container.streams.video), None)
            # without a codec context the codec is one that FFmpeg does not know
            if stream is None or stream.codec_context is None or not stream.width:
                raise VideoError(f"{path} has no readable video stream, or is truncated")
            stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(f"{path} is truncated or corrupt: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _count(path: Path) -> tuple[int, float | None]:
    """(frames, frames per second): the container's count, or else one packet = one frame."""
    with _opened(path, CONTAINERS, "a video") as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else None
        if stream.frames > path.stat().st_size:
            # before anybody counts to two billion
            raise VideoError(f"{path} is corrupt: its header promises {stream.frames} frames, more than it has bytes")
        if stream.frames > 0 and _agrees(stream, fps):
            return stream.frames, fps
        total, end = 0, 0.0
        for packet in _packets(path, container, stream):
            # the demuxer closes with an empty packet; an edit list discards what it hides
            total += packet.size > 0 and not packet.is_discard
            end = max(end, _end(packet))
        _check_complete(path, stream, total, end)
    return total, fps


def _agrees(stream: Any, fps: float | None) -> bool:
    """Whether the header's frame count fits its duration: an edit list shortens the latter only."""
    if fps is None or stream.duration is None:
        return True
    return abs(float(stream.duration * stream.time_base) * fps - stream.frames) <= 1 + 0.01 * stream.frames


def _collect(path: Path, indices: tuple[int, ...], progress: Progress | None) -> tuple[np.ndarray, int]:
    """(frames uint8 [T, H, W, 3], frames decoded): up to the last index, fewer if the file ends before it."""
    frames, kept, decoded, end = np.empty((0, 0, 0, 3), np.uint8), 0, 0, 0.0
    with _opened(path, CONTAINERS, "a video") as (container, stream):
        for frame in (frame for packet in _packets(path, container, stream) for frame in packet.decode()):
            if frame.is_corrupt:
                raise VideoError(f"{path} is truncated or corrupt: frame {decoded} cannot be decoded")
            while kept < len(indices) and indices[kept] == decoded:
                rgb = _rgb(frame)
                if kept == 0:
                    frames = _allocate(path, len(indices), rgb.shape)
                if rgb.shape != frames.shape[1:]:
                    raise VideoError(
                        f"{path} must have frames of one size, frame {decoded} is {rgb.shape[0]}x{rgb.shape[1]} "
                        f"after {frames.shape[1]}x{frames.shape[2]}"
                    )
                frames[kept] = rgb
                kept += 1
                if progress is not None:
                    progress(kept, len(indices))
            decoded += 1
            end = max(end, _end(frame))
            if kept == len(indices):
                return frames, decoded
        _check_complete(path, stream, decoded, end)
    return frames[:kept], decoded


def _packets(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets; one cut short is an error here, because a threaded decoder drops it silently at the end."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise VideoError(f"{path} is truncated or corrupt: a packet at {_end(packet):.2f} s is damaged")
        yield packet


def _end(timed: Any) -> float:
    """Seconds at which a packet or frame ends; 0 where it has no clock."""
    if timed.pts is None or timed.time_base is None:
        return 0.0
    return float((timed.pts + (timed.duration or 0)) * timed.time_base)


def _check_complete(path: Path, stream: Any, frames: int, end: float) -> None:
    """Some demuxers end in good order where a file was cut off: compare with the length its header promises."""
    if frames == 0:
        raise VideoError(f"{path} holds no decodable video frame, or is truncated")
    if stream.duration is not None:
        declared = float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    else:
        # Matroska's tag per track, "HH:MM:SS.fraction"
        parts = stream.metadata.get("DURATION", "").split(":")
        try:
            hours, minutes, seconds = (float(part) for part in parts)
        except ValueError:
            return
        declared = 3600 * hours + 60 * minutes + seconds
    if declared - end > max(3 / float(stream.average_rate or 1), 0.01 * declared):
        raise VideoError(f"{path} is truncated: its header promises {declared:.2f} s of video, {end:.2f} s are there")


def _allocate(path: Path, count: int, shape: tuple[int, ...]) -> np.ndarray:
    size = count * shape[0] * shape[1] * shape[2]
    if size > MAX_BYTES:
        raise VideoError(
            f"{path}: {count} frames of {shape[0]}x{shape[1]} take {size / 2**30:.0f} GiB, at most "
            f"{MAX_BYTES >> 30} are read: pass a smaller num_frames or fps"
        )
    return np.empty((count, *shape), np.uint8)


def _rgb(frame: Any) -> np.ndarray:
    """uint8 [H, W, 3], turned and mirrored as the file's display matrix asks."""
    rgb = frame.to_ndarray(format="rgb24")
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            # 3 x 3, of which a point moves by x' = right_x * x + right_y * y, y' = down_x * x + down_y * y
            right_x, down_x, _, right_y, down_y = np.frombuffer(data, np.int32)[:5].tolist()
            if abs(right_y) > abs(right_x):
                rgb, right_x, down_y = rgb.transpose(1, 0, 2), right_y, down_x
            rgb = rgb[:: -1 if down_y < 0 else 1, :: -1 if right_x < 0 else 1]
    return rgb
