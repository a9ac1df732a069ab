"""Where training clips come from: a file of videos, images and questions, or the synthetic world."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from sparrow.video import FrameSettings, PatchSettings, VideoError, VideoInfo, load_video, prepare, read_image
from sparrow.video.prompt import decoded

Settings = FrameSettings | PatchSettings
# The question, or messages with a part for each of them; videos (frames uint8 [T, H, W, 3], and where they lie); images
# (uint8 [H, W, 3]).
Shown = tuple[str | list[dict], list[tuple[np.ndarray, VideoInfo]], list[np.ndarray]]
FORMS = (
    '{"prompt": text}, with "video": path, "image": path or "images": [path, ...] where it is about such, or '
    '{"messages": [...]}'
)
SOURCES = ("video", "image", "path", "url")  # entries of a message's part that may name a file


class Clips(Protocol):
    """Numbered clips with a question each."""

    def __len__(self) -> int: ...

    def inputs(self, clip: int) -> dict[str, Tensor]:
        """The model's inputs, as sparrow.video.prepare returns them. The same whenever it is called."""

    def shown(self, clip: int) -> Shown:
        """See Shown."""

    def describe(self, clip: int) -> dict[str, object]:
        """What to write beside the answer."""


class FileClips:
    """The lines of a JSONL file: {"prompt": text}, with "video": path, "image": path or "images": [path, ...] where it
    is about such; or {"messages": [...]}, chat messages as sparrow.video.prepare takes them (several turns, any number
    of videos and images). A path is relative to the file's folder.

    Args:
        file: at least one line.
        settings, tokenizer: the target's.
        num_frames, fps: frames to sample, see prepare.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not such an object, or (by `inputs`) cannot be read; its number is named.
    """

    def __init__(
        self, file: str | pathlib.Path, settings: Settings, tokenizer, num_frames: int | None, fps: float | None
    ):
        self.folder, self.settings, self.tokenizer = pathlib.Path(file).parent, settings, tokenizer
        self.num_frames, self.fps = num_frames, fps
        texts = enumerate(pathlib.Path(file).read_text().splitlines(), 1)
        places = {f"{file}, line {number}": text for number, text in texts if text.strip()}
        self.places, self.lines = list(places), [_line(text, where) for where, text in places.items()]
        if not self.lines:
            raise ValueError(f"data.clips must hold at least one line, {file} holds none")

    def __len__(self) -> int:
        return len(self.lines)

    def inputs(self, clip: int) -> dict[str, Tensor]:
        line: dict[str, Any] = self.lines[clip]
        about: dict[str, Any] = {"prompt": line.get("prompt")}
        if "messages" in line:
            about["prompt"] = _placed(line["messages"], self.folder)
        if "video" in line:
            about["videos"] = [self.folder / line["video"]]
        if images := [line["image"]] if "image" in line else line.get("images"):
            about["images"] = [self.folder / image for image in images]
        if "messages" in line or "video" in line:
            about |= {"num_frames": self.num_frames, "fps": self.fps}
        try:
            return prepare(self.settings, self.tokenizer, **about)
        except (FileNotFoundError, VideoError) as error:
            raise type(error)(f"{self.places[clip]}: {error}") from None

    def shown(self, clip: int) -> Shown:
        line, where = self.lines[clip], self.places[clip]
        if "messages" in line:
            messages = _placed(line["messages"], self.folder)
            try:
                return decoded(self.settings, self.tokenizer, messages, self.num_frames, self.fps)
            except (FileNotFoundError, VideoError) as error:
                raise type(error)(f"{where}: {error}") from None
        named = [line["image"]] if "image" in line else line.get("images", [])
        try:
            named_videos = [self.folder / line["video"]] if "video" in line else []
            videos = [load_video(v, self.settings, num_frames=self.num_frames, fps=self.fps) for v in named_videos]
            images = [read_image(self.folder / image, f"image {i}") for i, image in enumerate(named)]
        except (FileNotFoundError, VideoError) as error:
            raise type(error)(f"{where}: {error}") from None
        return str(line["prompt"]), videos, images

    def check(self) -> None:
        """Looks whether every file that a line names is there; nothing of it is read.

        Raises:
            FileNotFoundError: one is not; the line is named, and how many more there are.
        """
        missing = [(at, file) for at in range(len(self)) for file in self._files(at) if not file.exists()]
        if missing:
            (at, file), more = missing[0], len(missing) - 1
            others = f"; {more} more files that lines name are not there" if more else ""
            raise FileNotFoundError(f"{self.places[at]}: no such file: {file}{others}")

    def _files(self, clip: int) -> list[pathlib.Path]:
        """The local files that a line names."""
        line = self.lines[clip]
        named = [line[name] for name in ("video", "image") if name in line] + line.get("images", [])
        files = [self.folder / name for name in named]
        for message in _placed(line.get("messages", []), self.folder):
            parts = message.get("content")
            for part in parts if isinstance(parts, list) else ():
                values = [part[k] for k in SOURCES if k in part] if isinstance(part, dict) else []
                flat = [x for value in values for x in (value if isinstance(value, list) else [value])]
                files += [pathlib.Path(x) for x in flat if isinstance(x, str) and not _is_address(x)]
        return files

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
        prompt, videos, _ = self.shown(clip)
        return prepare(self.settings, self.tokenizer, prompt, videos)

    def shown(self, clip: int) -> Shown:
        drawn = self.draw(self.first + clip)
        length, height, width = drawn.frames.shape[:3]
        return drawn.prompt, [(drawn.frames, VideoInfo(length, drawn.fps, tuple(range(length)), height, width))], []

    def describe(self, clip: int) -> dict[str, object]:
        return {"number": self.first + clip}


def _is_address(given: str) -> bool:
    return re.match(r"(?i)[a-z][a-z0-9+.-]*://|data:", given) is not None


def _placed(messages: list[dict[str, Any]], folder: pathlib.Path) -> list[dict[str, Any]]:
    """The messages with the paths of their videos and images as they are from here."""

    def path(given: Any) -> Any:
        if isinstance(given, list):
            return [path(frame) for frame in given]
        return given if not isinstance(given, str) or _is_address(given) else str(folder / given)

    def part(given: Any) -> Any:
        return {k: path(v) if k in SOURCES else v for k, v in given.items()} if isinstance(given, dict) else given

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
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be {FORMS}, got {text[:80]}")
    if "messages" in values:
        messages = values["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError(f"{where}: messages must be a list of objects, got {text[:80]}")
        if named := [name for name in ("video", "image", "images", "prompt") if name in values]:
            raise ValueError(f"{where}: {named[0]} must not stand beside messages")
        return values
    images = values.get("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError(f"{where}: images must be a list of paths, got {text[:80]}")
    if "images" in values and "image" in values:
        raise ValueError(f"{where}: image must not stand beside images")
    if not all(
        isinstance(values.get(name, other), str) for name, other in (("prompt", 0), ("video", ""), ("image", ""))
    ):
        raise ValueError(f"{where} must be {FORMS}, got {text[:80]}")
    return values
