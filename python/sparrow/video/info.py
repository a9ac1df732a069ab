"""What is known of a clip beside its frames: where they lie in time."""

from dataclasses import dataclass

# transformers assumes this rate where frames come without one
ASSUMED_FPS = 24.0


@dataclass(frozen=True)
class VideoInfo:
    """Where the sampled frames lie in the source.

    Attributes:
        total_frames: frames of the source before sampling.
        fps: average frames per second of the source; None when it has no clock (arrays, folders).
        indices: source index of each sampled frame, ascending.
        height: pixels, after rotation.
        width: pixels, after rotation.
        rotation: degrees clockwise by which frames were turned to stand upright: 0, 90, 180 or 270.
    """

    total_frames: int
    fps: float | None
    indices: tuple[int, ...]
    height: int
    width: int
    rotation: int = 0

    @property
    def sampled_fps(self) -> float:
        """Sampled frames per second of the clip; 24 where the source has no clock, as transformers does."""
        if self.fps is None:
            return ASSUMED_FPS
        return len(self.indices) / self.total_frames * self.fps
