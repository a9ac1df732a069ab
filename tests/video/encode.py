"""Small clips of known frames at known times, for the tests of files."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition


def moving(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [count, height, width, 3]: every frame differs from every other, also after compression."""
    frames = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        frames[i] = 20 + (37 * i) % 200
        frames[i, :, (5 * i) % width :, i % 3] = 240
        frames[i, (3 * i) % height :, :, 2] //= 2
    return frames


def textured(count: int) -> np.ndarray:
    """uint8 [count, 64, 96, 3]: a ground of noise that drifts, of which every packet has hundreds of bytes."""
    ground = np.random.default_rng(0).integers(0, 256, (64, 96 + count, 3), np.uint8)
    fresh = np.random.default_rng(1).integers(0, 60, (count, 64, 96, 3), np.uint8)
    return np.stack([ground[:, i : i + 96] // 2 + fresh[i] for i in range(count)])


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    count: int = 60,
    times: Sequence[int] | None = None,
    base: Fraction = Fraction(1, 30),
    last: int | None = None,
    pix_fmt: str = "yuv420p",
    rate: int | None = 30,
    frames: np.ndarray | None = None,
    **options: Any,
) -> Path:
    """Writes a clip.

    Args:
        path: its suffix names the container.
        codec: an encoder of FFmpeg; options go to it, with `container_` before the name to the container.
        count: frames.
        times: when each shows, in units of `base`.
        base: seconds.
        last: how long the last one shows, in the same units.
        pix_fmt: how pixels are stored.
        rate: frames per second that the header names.
        frames: uint8 [count, H, W, 3]; default: moving(count).
    """
    frames = moving(count) if frames is None else frames
    times = range(len(frames)) if times is None else times
    to_container = {k.removeprefix("container_"): v for k, v in options.items() if k.startswith("container_")}
    to_codec = {k.replace("__", "-"): v for k, v in options.items() if not k.startswith("container_")}
    with av.open(str(path), "w", options=to_container) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=to_codec)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.bit_rate = 500_000
        stream.time_base = stream.codec_context.time_base = base
        packets = []
        for time, array in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, base
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if last is not None:
            packets[-1].duration = int(last * base / packets[-1].time_base)
        for packet in packets:
            container.mux(packet)
    return path


def copy(source: Path, target: Path, **options: Any) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        stream: Any = read.streams.video[0]
        out = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.stream = out
                write.mux(packet)
    return target


def together(path: Path, sources: Sequence[tuple[Path, Disposition]]) -> Path:
    """One file with the film of every source, in that order, under that disposition."""
    with av.open(str(path), "w") as write:
        opened = [(av.open(str(source)), disposition) for source, disposition in sources]
        outs = []
        for read, disposition in opened:
            out: Any = write.add_stream_from_template(read.streams.video[0])
            out.disposition = disposition
            outs.append(out)
        for (read, _), out in zip(opened, outs, strict=True):
            for packet in read.demux(read.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = out
                    write.mux(packet)
            read.close()
    return path


def decoded(path: Path) -> np.ndarray:
    """Every frame as PyAV alone decodes it, from the start, uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
