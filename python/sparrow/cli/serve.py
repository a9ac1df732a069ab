"""`sparrow serve`: the command line of `vllm serve` with sparrow's drafter in it."""

import importlib.util
import json
import os
import shlex
import sys

from sparrow.cli.arguments import Serve
from sparrow.cli.loading import read_drafter
from sparrow.drafters.network import SparrowDrafter
from sparrow.engines.chain import check_drafter

PROPOSER = "sparrow.engines.vllm.SparrowProposer"


def command(arguments: Serve) -> list[str]:
    """The words behind `vllm`. Raises ValueError where --vllm-args is no line of a shell."""
    own = {"drafter": os.path.abspath(arguments.drafter)}
    rows = {} if arguments.text_rows is None else {"text_rows": arguments.text_rows}
    method = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": arguments.length}
    try:
        more = shlex.split(arguments.vllm_args or "")
    except ValueError as error:
        raise ValueError(f"--vllm-args must be words as in a shell ({error}), got {arguments.vllm_args!r}") from None
    return [
        "serve", arguments.target, "--speculative-config", json.dumps(method),
        "--additional-config", json.dumps({"sparrow": own | rows}), *more,
    ]  # fmt: skip


def run(arguments: Serve) -> int:
    """Prints the command line, then becomes vLLM.

    Raises:
        ImportError: vLLM is not installed. ValueError, FileNotFoundError: no drafter, or one that no engine can run.
    """
    words = command(arguments)
    drafter = read_drafter(arguments.drafter)
    if not isinstance(drafter, SparrowDrafter):
        raise ValueError(f"--drafter: in vLLM it must be the folder of a drafter, got {arguments.drafter!r}")
    check_drafter(drafter)
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            'vLLM is not installed here: pip install "sparrow-decoding[vllm]" (without a GPU see docs/engines.md)'
        )
    print(shlex.join(["vllm", *words]), flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.cli.main", *words])
