"""What ships with the package: a small video LLM trained on the synthetic world, its drafters, and a clip."""

import pathlib
from typing import Any

from sparrow.files import read_json
from sparrow.miniature.world import Format, sample, write_video

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
SHIPPED = ASSETS / "miniature"
REFERENCE = SHIPPED / "drafter_reference"  # the drafter trained further under vLLM's numbering (states.positions)
# Drafters of the comparison, one folder each: in a checkout only, a wheel does not carry them.
ARMS = pathlib.Path(__file__).parents[3] / "bench" / "arms"
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
    """A drafter's folder: "shipped" is the package's own, "shipped_reference" its own for vLLM's numbering, an arm's
    name is its folder in ARMS, else it is a path.

    Raises:
        FileNotFoundError: it is none of these; the message lists the arms.
    """
    if name == "shipped":
        return pair()[1]
    if name == "shipped_reference":
        return REFERENCE
    arms = {folder.name: folder for folder in sorted(ARMS.glob("*")) if folder.is_dir()}
    if name not in arms and not pathlib.Path(name).is_dir():
        known = ", ".join(arms) or "none here: a checkout of sparrow's repository has them, in bench/arms"
        raise FileNotFoundError(
            f"no drafter {name!r}: neither 'shipped' nor 'shipped_reference', nor a folder, nor an arm ({known})"
        )
    return arms.get(name, pathlib.Path(name))


def training_record(name: str) -> dict[str, Any] | None:
    """What is known of a drafter's training: {"overrides", "seconds", "steps", "seed"}; None where nothing is.

    Args:
        name: as in drafter_folder.
    """
    file = drafter_folder(name) / "training.json"
    return read_json(file) if file.is_file() else None


def write_demo(file: str | pathlib.Path = DEMO) -> None:
    """Draws and encodes the demo's clip."""
    clip = sample(DEMO_NUMBER, DEMO_FORM)
    write_video(file, clip.frames, clip.fps)
