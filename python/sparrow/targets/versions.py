"""What differs between the releases of transformers that are supported, asked from signatures where one can tell."""

import inspect

from transformers import PreTrainedModel

CACHE_ARGUMENTS = ("cache", "past_key_values")  # newest first; "cache" from transformers 5.24 on


def cache_argument(model: PreTrainedModel) -> str:
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
