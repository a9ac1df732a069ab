"""--engine-options of the commands that run vLLM's engine."""

import importlib.util
import json
from typing import Any


def engine_options(text: str) -> dict[str, Any]:
    """The arguments of vLLM's LLM that the text holds.

    Raises:
        ValueError: it is not a JSON object. ImportError: vLLM is not installed.
    """
    try:
        made = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--engine-options must be a JSON object ({error}), got {text!r}") from None
    if not isinstance(made, dict):
        raise ValueError(f"--engine-options must be a JSON object, got {text!r}")
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            'vLLM is not installed here: pip install "sparrow-decoding[vllm]" (without a GPU see docs/engines.md)'
        )
    return made
