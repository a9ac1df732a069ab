"""Where training clips come from: a file of videos and questions, or the synthetic world."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from sparrow.video import FrameSettings, PatchSettings, VideoInfo, prepare

Settings = FrameSettings | PatchSettings


class Clips(Protocol):
    """Numbered clips with a question each."""

    def __len__(self) -> int: ...

    def inputs(self, clip: int) -> dict[str, Tensor]:
        """The model's inputs, as sparrow.video.prepare returns them. The same whenever it is called."""

    def describe(self, clip: int) -> dict[str, object]:
        """What to write beside the answer."""


class FileClips:
    """The lines of a JSONL file: {"video": path, "prompt": text}, {"prompt": text} alone, or {"messages": [...]}, chat
    messages as sparrow.video.prepare takes them (several turns, any number of videos). A path is relative to the
    file's folder.

    Args:
        file: at least one line.
        settings, tokenizer: the target's.
        num_frames, fps: frames to sample, see prepare.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not such an object; its number is named.
    """

    def __init__(
        self, file: str | pathlib.Path, settings: Settings, tokenizer, num_frames: int | None, fps: float | None
    ):
        self.folder, self.settings, self.tokenizer = pathlib.Path(file).parent, settings, tokenizer
        self.num_frames, self.fps = num_frames, fps
        self.lines = [
            _line(text, f"{file}, line {number}")
            for number, text in enumerate(pathlib.Path(file).read_text().splitlines(), 1)
            if text.strip()
        ]
        if not self.lines:
            raise ValueError(f"data.clips must hold at least one line, {file} holds none")

    def __len__(self) -> int:
        return len(self.lines)

    def inputs(self, clip: int) -> dict[str, Tensor]:
        line: dict[str, Any] = self.lines[clip]
        if "messages" in line:
            return prepare(
                self.settings, self.tokenizer, _placed(line["messages"], self.folder), num_frames=self.num_frames,
                fps=self.fps,
            )  # fmt: skip
        if "video" not in line:
            return prepare(self.settings, self.tokenizer, line["prompt"])
        return prepare(
            self.settings, self.tokenizer, line["prompt"], [self.folder / line["video"]],
            num_frames=self.num_frames, fps=self.fps,
        )  # fmt: skip

    def describe(self, clip: int) -> dict[str, object]:
        return dict(self.lines[clip])


class SyntheticClips:
    """Clips of the synthetic world, drawn anew from their numbers; nothing is stored.

    Args:
        draw: number -> clip, an object with frames uint8 [T, H, W, 3], fps and prompt (see sparrow.miniature.world).
        settings, tokenizer: the target's.
        count, first: the clips' numbers are first, first + 1, ...
    """

    def __init__(self, draw: Callable[[int], Any], settings: Settings, tokenizer, count: int, first: int):
        self.draw, self.settings, self.tokenizer = draw, settings, tokenizer
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def inputs(self, clip: int) -> dict[str, Tensor]:
        drawn = self.draw(self.first + clip)
        length, height, width = drawn.frames.shape[:3]
        info = VideoInfo(length, drawn.fps, tuple(range(length)), height, width)
        return prepare(self.settings, self.tokenizer, drawn.prompt, [(drawn.frames, info)])

    def describe(self, clip: int) -> dict[str, object]:
        return {"number": self.first + clip}


def _placed(messages: list[dict[str, Any]], folder: pathlib.Path) -> list[dict[str, Any]]:
    """The messages with their videos' paths as they are from here."""

    def part(given: Any) -> Any:
        named = isinstance(given, dict) and given.get("type") == "video" and isinstance(given.get("video"), str)
        return given | {"video": str(folder / given["video"])} if named else given

    contents = [m.get("content") for m in messages]
    return [
        m | {"content": [part(p) for p in content]} if isinstance(content, list) else m
        for m, content in zip(messages, contents, strict=True)
    ]


def _line(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if isinstance(values, dict) and "messages" in values:
        messages = values["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError(f"{where}: messages must be a list of objects, got {text[:80]}")
        if named := [name for name in ("video", "prompt") if name in values]:
            raise ValueError(f"{where}: {named[0]} must not stand beside messages")
        return values
    texts = [values.get("prompt"), values.get("video", "none")] if isinstance(values, dict) else [None]
    if not all(isinstance(value, str) for value in texts):
        forms = '{"video": path, "prompt": text}, {"prompt": text} or {"messages": [...]}'
        raise ValueError(f"{where} must be {forms}, got {text[:80]}")
    return values
