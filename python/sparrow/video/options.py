"""What a video part of a chat message may say about its video, as Qwen's model cards write it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sparrow.video.image_settings import PatchImages
from sparrow.video.info import VideoError
from sparrow.video.pixel_settings import is_count, is_finite
from sparrow.video.pixels import MAX_ASPECT_RATIO, budgeted_size, fitted_size
from sparrow.video.settings import FrameSettings, PatchSettings

# qwen-vl-utils' bound of one frame, in tokens
MAX_FRAME_TOKENS = 16384
COUNTS = ("nframes", "min_frames", "max_frames", "resized_height", "resized_width")
SECONDS = ("video_start", "video_end")
SIZED = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
PATCH_ONLY = ("min_frames", "max_frames", *SIZED)


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options of one video; None = not said. Semantics of qwen-vl-utils 0.0.14 (`fetch_video`), which the cards use.

    Attributes:
        where: the part in words, for errors.
        fps: frames per second to sample; of frames without a clock and without sample_fps: the rate they have.
        nframes: frames to sample; Qwen: rounded to whole temporal patches.
        min_frames: least number that sampling by fps takes, rounded up to whole temporal patches. Qwen only.
        max_frames: largest such number, rounded down. Qwen only.
        video_start: seconds; frames before it are not read. Timestamps stay those of the whole video.
        video_end: seconds; frames after it are not read.
        sample_fps: frames per second of a source without a clock: pictures, arrays.
        min_pixels: least height * width of a resized frame. Qwen only, as the following.
        max_pixels: largest height * width of a resized frame.
        total_pixels: bound of max_pixels by the number of frames: total_pixels / frames * temporal_patch_size.
        resized_height: height of a resized frame, rounded to whole tokens; only with resized_width.
        resized_width: likewise.
    """

    where: str = "the video"
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    sample_fps: float | None = None
    min_pixels: float | None = None
    max_pixels: float | None = None
    total_pixels: float | None = None
    resized_height: int | None = None
    resized_width: int | None = None

    def __post_init__(self) -> None:
        for name in OPTIONS:
            value = getattr(self, name)
            if value is None:
                continue
            if name in COUNTS:
                self._require(is_count(value), f"{name} must be a positive integer", value)
            elif name in SECONDS:
                self._require(is_finite(value) and value >= 0, f"{name} must be a number of seconds >= 0", value)
            else:
                self._require(is_finite(value) and value > 0, f"{name} must be a positive number", value)
        for first, second in (("fps", "nframes"), ("nframes", "min_frames"), ("nframes", "max_frames")):
            both = self._given(first) and self._given(second)
            self._require(not both, f"at most one of {first} and {second} may be given", "both")
        if self.video_start is not None and self.video_end is not None:
            ordered = self.video_start <= self.video_end
            span = f"{self.video_start} and {self.video_end}"
            self._require(ordered, "video_start must not be after video_end", span)
        self._check_size()

    def _check_size(self) -> None:
        resized = [self._given("resized_height"), self._given("resized_width")]
        self._require(resized[0] == resized[1], "resized_height and resized_width must be given together", "one")
        for name in ("min_pixels", "max_pixels", "total_pixels"):
            excess = resized[0] and self._given(name)
            self._require(not excess, f"{name} must not be given beside resized_height", getattr(self, name))
        if self.min_pixels is not None and self.max_pixels is not None:
            budget = f"{self.min_pixels} and {self.max_pixels}"
            self._require(self.min_pixels <= self.max_pixels, "min_pixels must not exceed max_pixels", budget)

    def check_family(self, settings: PatchSettings | FrameSettings) -> None:
        """Refuses what this family has no place for."""
        for name in PATCH_ONLY:
            if isinstance(settings, FrameSettings) and self._given(name):
                raise VideoError(f"{self.where}: {settings.family} has no {name}, got {getattr(self, name)}")

    def check_loaded(self) -> None:
        """Refuses what a video whose frames were sampled already can no longer obey."""
        for name in ("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end", "sample_fps"):
            if self._given(name):
                raise VideoError(
                    f"{self.where}: {name} goes to load_video where a video is given as its result, "
                    f"got {getattr(self, name)}"
                )

    def check_unsized(self) -> None:
        """Refuses a size of its own: who makes the pixels chooses it."""
        for name in SIZED:
            if self._given(name):
                raise VideoError(f"{self.where}: an engine resizes by the model's settings, got {name}")

    def sampling(
        self,
        settings: PatchSettings | FrameSettings,
        clock: bool,
        num_frames: int | None,
        fps: float | None,
    ) -> tuple[PatchSettings | FrameSettings, dict[str, Any]]:
        """(settings, arguments of load_video): the part's own sampling, or else the caller's.

        Args:
            settings: of the family.
            clock: whether the source has a frame rate of its own.
            num_frames: the caller's.
            fps: the caller's.
        """
        rate = self.sample_fps
        if rate is not None and clock:
            raise VideoError(
                f"{self.where}: sample_fps is for frames without a clock, this is a video file, got {rate}"
            )
        if self.nframes is not None:
            num_frames, fps = self._whole(settings), None
        elif self.fps is not None:
            num_frames, fps = None, self.fps
            if not clock and rate is None:
                # these frames were sampled at this rate already
                rate, fps = fps, None
        bounds = {name: getattr(self, name) for name in ("min_frames", "max_frames") if self._given(name)}
        if bounds:
            by_rate = fps is not None or (clock and num_frames is None and settings.fps is not None)
            name = next(iter(bounds))
            self._require(by_rate, f"{name} bounds sampling by fps, which must be given", bounds[name])
            assert isinstance(settings, PatchSettings)
            settings = self._bounded(settings)
        arguments = {"num_frames": num_frames, "fps": fps, "source_fps": rate}
        return settings, arguments | {"start": self.video_start, "end": self.video_end}

    def _whole(self, settings: PatchSettings | FrameSettings) -> int:
        """The frames of `nframes`."""
        assert self.nframes is not None
        if isinstance(settings, FrameSettings):
            return self.nframes
        group = settings.temporal_patch_size
        whole = round(self.nframes / group) * group
        self._require(whole > 0, f"nframes must make at least one temporal patch of {group} frames", self.nframes)
        return whole

    def _bounded(self, settings: PatchSettings) -> PatchSettings:
        group = settings.temporal_patch_size
        least, most = settings.min_frames, settings.max_frames
        if self.max_frames is not None:
            most = self.max_frames // group * group
            self._require(
                most > 0, f"max_frames must be at least one temporal patch of {group} frames", self.max_frames
            )
            least = min(least, most)
        if self.min_frames is not None:
            least = math.ceil(self.min_frames / group) * group
            self._require(least <= most, f"min_frames must not exceed max_frames ({most})", self.min_frames)
        return replace(settings, min_frames=least, max_frames=most)

    def frame_size(self, shape: tuple[int, ...], settings: PatchSettings) -> tuple[int, int]:
        """(height, width) of a resized frame.

        Pixels are counted per frame in every family, as in qwen-vl-utils; Qwen3-VL's settings count a whole clip's.

        Args:
            shape: of the sampled frames, [T, H, W, 3].
            settings: of the family.
        """
        num_frames, height, width = shape[:3]
        factor = settings.patch_size * settings.merge_size
        if (size := self._asked_size(factor)) is not None:
            return size
        if not any(self._given(name) for name in ("min_pixels", "max_pixels", "total_pixels")):
            return budgeted_size(num_frames, height, width, settings)
        least, most = self._budget(num_frames, factor, settings)
        return fitted_size(height, width, factor, least, most)

    def image_size(self, shape: tuple[int, ...], settings: PatchImages) -> tuple[int, int] | None:
        """(height, width) of a resized image; None where the part does not say.

        Args:
            shape: of the image, [H, W, 3].
            settings: of the family.
        """
        factor = settings.patch_size * settings.merge_size
        if (size := self._asked_size(factor)) is not None:
            return size
        if not self._given("min_pixels") and not self._given("max_pixels"):
            return None
        least = settings.min_pixels if self.min_pixels is None else math.ceil(self.min_pixels)
        most = max(settings.max_pixels, least) if self.max_pixels is None else int(self.max_pixels)
        return fitted_size(shape[0], shape[1], factor, min(least, most), most)

    def _asked_size(self, factor: int) -> tuple[int, int] | None:
        """(height, width) of resized_height and resized_width in whole tokens."""
        if self.resized_height is not None and self.resized_width is not None:
            size = tuple(max(factor, round(x / factor) * factor) for x in (self.resized_height, self.resized_width))
            asked = f"{self.resized_height} x {self.resized_width}"
            fits = size[0] * size[1] <= MAX_FRAME_TOKENS * factor**2 and max(size) <= MAX_ASPECT_RATIO * min(size)
            rule = f"at most {MAX_FRAME_TOKENS} tokens of {factor} x {factor} pixels, one side at most"
            rule = f"resized_height x resized_width must be {rule} {MAX_ASPECT_RATIO} times the other"
            self._require(fits, rule, asked)
            return size[0], size[1]
        return None

    def _budget(self, num_frames: int, factor: int, settings: PatchSettings) -> tuple[int, int]:
        """(least, most) pixels of one frame."""
        group = settings.temporal_patch_size
        # Qwen3-VL's settings hold a clip's pixels: an even share for each frame
        share = -(-num_frames // group) * group if settings.family == "qwen3_vl" else 1
        least, most = max(1, settings.min_pixels // share), max(1, settings.max_pixels // share)
        least = least if self.min_pixels is None else math.ceil(self.min_pixels)
        total = self.total_pixels
        if settings.cap_pixels_per_frame:
            # what the settings' own budget would be held to
            tokens = settings.max_video_tokens * factor**2
            capped = tokens * num_frames / group if settings.family == "qwen3_vl" else tokens * 0.9
            total = capped if total is None else min(total, capped)
        raised = int(least * 1.05)
        most = int(self.max_pixels) if self.max_pixels is not None else max(most, raised)
        if total is not None:
            most = min(most, max(int(total / num_frames * group), raised))
        if self.min_pixels is None:
            least = min(least, most)
        return least, most

    def _given(self, name: str) -> bool:
        return getattr(self, name) is not None

    def _require(self, valid: bool, rule: str, value: Any) -> None:
        if not valid:
            raise VideoError(f"{self.where}: {rule}, got {value!r}")


OPTIONS = tuple(field.name for field in fields(VideoOptions) if field.name != "where")
# those an image may have: of the resize
IMAGE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")


def read_options(part: Mapping[str, Any], where: str) -> VideoOptions:
    """The options among a part's entries."""
    return VideoOptions(where=where, **{name: part[name] for name in OPTIONS if name in part})
