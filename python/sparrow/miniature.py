"""What ships with the package: a small video LLM trained on the synthetic world, its drafter, and a clip."""

import pathlib

from sparrow.synthetic import Format, sample, write_video

ASSETS = pathlib.Path(__file__).parent / "assets"
SHIPPED = ASSETS / "miniature"
DEMO = ASSETS / "demo.mp4"
DEMO_NUMBER, DEMO_FORM = 584, Format(frames=96, side=128)  # of the test split; the target samples 32 frames of it


def pair(folder: str | pathlib.Path = SHIPPED) -> tuple[pathlib.Path, pathlib.Path]:
    """(target's folder, drafter's folder) of a pair kept in one folder.

    Raises:
        FileNotFoundError: one of the two is missing.
    """
    target, drafter = pathlib.Path(folder) / "target", pathlib.Path(folder) / "drafter"
    for part in (target, drafter):
        if not (part / "config.json").is_file():
            raise FileNotFoundError(f"a pair has target/ and drafter/ in one folder; {part / 'config.json'} is missing")
    return target, drafter


def drafter_folder(name: str) -> pathlib.Path:
    """A drafter's folder by its path; "shipped" is the package's own."""
    return pair()[1] if name == "shipped" else pathlib.Path(name)


def write_demo(file: str | pathlib.Path = DEMO) -> None:
    """Draws and encodes the demo's clip."""
    clip = sample(DEMO_NUMBER, DEMO_FORM)
    write_video(file, clip.frames, clip.fps)
