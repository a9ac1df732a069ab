"""The ready target: the package's language model and the tower and adapters that were trained here, in one folder."""

import pathlib

from safetensors.torch import load_file

from sparrow.files import lock, read_json
from sparrow.smollm2 import convert, host
from sparrow.smollm2.package import cache_folder, gguf, sha256

# What `sparrow train smollm2` made: in a checkout only, a wheel does not carry it.
TAUGHT = pathlib.Path(__file__).parents[3] / "bench" / "smollm2" / "taught.safetensors"
FORMAT = 1  # of the folder; another number, and it is made again


def fetch(cache: pathlib.Path | None = None, taught: pathlib.Path | None = None) -> pathlib.Path:
    """The target's folder in the cache, made where it is not there or was made from other files.

    Args:
        cache: folder; default: package.cache_folder().
        taught: tower and adapters; default: TAUGHT.

    Raises:
        PackageError: the package cannot be had, or is not the one that was checked.
        FileNotFoundError: `taught` is missing.
        ModuleNotFoundError: gguf is not installed.
    """
    cache, taught = cache or cache_folder(), taught or TAUGHT
    if not taught.is_file():
        raise FileNotFoundError(f"no {taught}: a checkout of sparrow's repository has it, or `sparrow train smollm2`")
    folder = cache / "smollm2"
    about = {"format": FORMAT, "taught": sha256(taught)}
    with lock(folder):
        if not (is_made := folder / "origin.json").is_file() or not about.items() <= read_json(is_made).items():
            language = convert.read(gguf(cache))
            model = host.build(language)
            host.teach(model, load_file(taught))
            host.save(model, language.tokenizer, folder, about)
    return folder
