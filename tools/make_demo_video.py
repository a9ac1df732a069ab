"""Draws python/sparrow/assets/demo.mp4: three coloured shapes enter one after another on a dark ground, 4 s, 256 x 256.

Run from the repository's root: python tools/make_demo_video.py [--sheet sheet.png]
"""

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

PATH = Path(__file__).parents[1] / "python" / "sparrow" / "assets" / "demo.mp4"
SIDE, FPS, SECONDS, SUBPIXELS = 256, 24, 4, 3
GROUND = (26, 26, 32)


def draw(seconds: float) -> np.ndarray:
    """The picture at a time: uint8 [SIDE, SIDE, 3], edges smoothed."""
    axis = (np.arange(SIDE * SUBPIXELS) + 0.5) / SUBPIXELS
    x, y = axis[None, :], axis[:, None]
    picture = np.empty((SIDE * SUBPIXELS, SIDE * SUBPIXELS, 3), np.float32)
    picture[:] = GROUND
    # a large red circle moves to the right
    picture[(x - 43 - 35 * seconds) ** 2 + (y - 128) ** 2 <= 36**2] = (230, 40, 40)
    if seconds >= 1.25:
        # a small yellow square enters at the upper right and moves to the left
        left = 213 - 40 * (seconds - 1.25)
        picture[(abs(x - left) <= 18) & (abs(y - 43) <= 18)] = (240, 220, 40)
    if seconds >= 2.5:
        # a large blue triangle appears at the bottom and stays
        picture[(abs(x - 128) <= 0.58 * (y - 178)) & (y >= 178) & (y <= 244)] = (50, 80, 240)
    smooth = picture.reshape(SIDE, SUBPIXELS, SIDE, SUBPIXELS, 3).mean((1, 3))
    return smooth.round().astype(np.uint8)


def encode(frames: list[np.ndarray], path: Path) -> None:
    """Writes an H.264 mp4; one thread, so that a build of the encoder gives the same bytes every time."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "slow", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def contact_sheet(video: Path, path: Path) -> None:
    """Eight decoded frames side by side, as a PNG to look at."""
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    step = len(frames) // 8
    rows = [np.concatenate(frames[step * start : step * (start + 4) : step], axis=1) for start in (0, 4)]
    sheet = av.VideoFrame.from_ndarray(np.concatenate(rows), format="rgb24")
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = sheet.width, sheet.height, "rgb24", Fraction(1, 1)
    path.write_bytes(b"".join(bytes(packet) for packet in [*codec.encode(sheet), *codec.encode(None)]))


def main() -> None:
    """Draws, encodes, reports the size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet")
    args = parser.parse_args()
    encode([draw(i / FPS) for i in range(FPS * SECONDS)], PATH)
    print(f"{PATH}: {PATH.stat().st_size} bytes")
    if args.sheet:
        contact_sheet(PATH, args.sheet)


if __name__ == "__main__":
    main()
