"""What vLLM runs first in each of its processes, as a plugin of its group "vllm.general_plugins" (pyproject.toml).

Its V2 model runner has no hook for proposers of others and refuses the method custom_class. With
VLLM_USE_V2_MODEL_RUNNER=1 two functions are wrapped, for sparrow's proposer alone; everything else goes the old way.
"""

import functools
from typing import Any

import vllm.envs
from vllm.config import VllmConfig
from vllm.v1.worker.gpu import spec_decode

from sparrow.engines import PROPOSER

REFUSED = "_get_v2_model_runner_unsupported_features"


def _ours(config: Any) -> bool:
    own = config.speculative_config
    return own is not None and own.method == "custom_class" and own.model == PROPOSER


def register() -> None:
    """Wraps both, once per process."""
    if not vllm.envs.VLLM_USE_V2_MODEL_RUNNER or getattr(spec_decode.init_speculator, "sparrow", False):
        return
    refused, choose = getattr(VllmConfig, REFUSED), spec_decode.init_speculator

    @functools.wraps(refused)
    def unsupported(self):
        found = refused(self)
        return [one for one in found if "custom_class" not in one] if _ours(self) else found

    @functools.wraps(choose)
    def init_speculator(vllm_config, device, req_states):
        if not _ours(vllm_config):
            return choose(vllm_config, device, req_states)
        from sparrow.engines.vllm_v2 import SparrowSpeculator

        return SparrowSpeculator(vllm_config, device, req_states)

    init_speculator.sparrow = True  # type: ignore[attr-defined]
    setattr(VllmConfig, REFUSED, unsupported)
    spec_decode.init_speculator = init_speculator
