"""A decoded frame or picture as RGB pixels that stand upright."""

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type

# FFmpeg has more kinds of side data than PyAV may know; their numbers stay below this
KINDS = 64


def upright_rgb(frame: Any) -> np.ndarray:
    """uint8 [H, W, 3], turned and mirrored as the file's display matrix or the picture's EXIF orientation asks."""
    rgb = frame.to_ndarray(format="rgb24")
    for data in _side_data(frame):
        if data.type == Type.DISPLAYMATRIX:
            # 3 x 3, of which a point moves by x' = right_x * x + right_y * y, y' = down_x * x + down_y * y
            right_x, down_x, _, right_y, down_y = np.frombuffer(data, np.int32)[:5].tolist()
            if abs(right_y) > abs(right_x):
                rgb, right_x, down_y = rgb.transpose(1, 0, 2), right_y, down_x
            rgb = rgb[:: -1 if down_y < 0 else 1, :: -1 if right_x < 0 else 1]
    return rgb


def _side_data(frame: Any) -> Any:
    """The frame's side data of the kinds that PyAV knows."""
    try:
        return frame.side_data
    except ValueError:
        # PyAV gives none at all where one is of a kind it has no name for, such as EXIF: FFmpeg takes those out
        graph = av.filter.Graph()
        last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
        for kind in sorted(set(range(KINDS)) - {known.value for known in Type}):
            step = graph.add("sidedata", f"mode=delete:type={kind}")
            last.link_to(step)
            last = step
        last.link_to(graph.add("buffersink"))
        graph.configure()
        graph.push(frame)
        return graph.pull().side_data
