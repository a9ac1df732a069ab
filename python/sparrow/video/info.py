"""What is known of a clip beside its frames: where they lie in time, and the one error it can cause."""

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]  # gets frames done, frames wanted
MAX_BYTES = 16 << 30  # of frames or pixels

# transformers assumes this rate where frames come without one
ASSUMED_FPS = 24.0


class VideoError(ValueError):
    """A video, a setting or a prompt that cannot be turned into model inputs; the message says which rule failed.

    A missing path is a FileNotFoundError.
    """


@dataclass(frozen=True)
class VideoInfo:
    """Where the sampled frames lie in the source.

    Attributes:
        total_frames: frames of the source before sampling.
        fps: average frames per second of the source; None when it has no clock (arrays, folders).
        indices: source index of each sampled frame, ascending.
        height: pixels of a frame standing upright.
        width: likewise.
        skipped: what was left out because it is damaged, a sentence each; see load_video's `on_damage`.
    """

    total_frames: int
    fps: float | None
    indices: tuple[int, ...]
    height: int
    width: int
    skipped: tuple[str, ...] = ()

    @property
    def sampled_fps(self) -> float:
        """Sampled frames per second of the clip; 24 where the source has no clock, as transformers does."""
        if self.fps is None:
            return ASSUMED_FPS
        return len(self.indices) / self.total_frames * self.fps
