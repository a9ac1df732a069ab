"""The pair that ships with the package: a small video LLM trained on the synthetic world, and its drafter."""

import pathlib

SHIPPED = pathlib.Path(__file__).parent / "assets" / "miniature"


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
