"""What differs between the releases of transformers that are supported, asked from signatures where one can tell."""

import inspect
import warnings

import torch
import transformers
from packaging.specifiers import SpecifierSet

TESTED = {"torch": ">=2.10,<2.16", "transformers": ">=5.18,<5.25"}  # pyproject.toml's ranges: `make test-versions`
CACHE_ARGUMENTS = ("cache", "past_key_values")  # newest first; "cache" from transformers 5.24 on


def cache_argument(model: transformers.PreTrainedModel) -> str:
    """The name under which `model`'s forward, and generate()'s preparation for it, take the KV cache.

    Raises:
        TypeError: its forward names no cache.
    """
    parameters = inspect.signature(model.forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in parameters:
            return name
    raise TypeError(
        f"model must take its KV cache as one of {', '.join(CACHE_ARGUMENTS)}; "
        f"{type(model).__name__}.forward takes {', '.join(parameters)}"
    )


def outside_tested(name: str, release: str) -> str | None:
    """What to say of this release of torch or transformers where it lies outside the tested range."""
    if SpecifierSet(TESTED[name]).contains(release, prereleases=True):
        return None
    return f"{name} {release} is outside the range sparrow is tested with, {name} {TESTED[name]}"


def warn_outside_tested() -> None:
    """One UserWarning that names the installed releases outside the tested ranges, where there are any."""
    installed = {"torch": str(torch.__version__), "transformers": transformers.__version__}
    found = [text for name, release in installed.items() if (text := outside_tested(name, release))]
    if found:
        warnings.warn("; ".join(found), UserWarning, stacklevel=3)
