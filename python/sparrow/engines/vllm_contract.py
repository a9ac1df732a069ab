"""What sparrow relies on in vLLM, asked of the installed one; the one method that is wrapped; what is refused."""

import functools
import inspect
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from sparrow.engines.vllm_worker import version

TESTED = ("0.32.0",)
WRAPPED = "propose_draft_token_ids"
# What each offers, in the order in which it is called by place.
PARAMETERS = {
    WRAPPED: (
        "self", "scheduler_output", "sampled_token_ids", "sampling_metadata", "hidden_states", "sample_hidden_states",
        "aux_hidden_states", "spec_decode_metadata", "common_attn_metadata", "slot_mappings",
    ),
}  # fmt: skip
V2_INIT = ("vllm_config", "device", "req_states")
V2_PROPOSE = (
    "self", "input_batch", "attn_metadata", "slot_mappings", "last_hidden_states", "aux_hidden_states", "num_sampled",
    "num_rejected", "last_sampled",
)  # fmt: skip
V2_NAMED = ("dummy_run", "num_speculative_tokens")
V2_BATCH = ("req_ids", "num_reqs", "idx_mapping_np", "num_scheduled_tokens", "positions")
SCHEDULED = ("finished_req_ids", "num_scheduled_tokens", "scheduled_spec_decode_tokens", "num_spec_tokens_to_schedule")
SPEC = ("block_size", "num_kv_heads", "head_size", "dtype")


def faults() -> list[str]:
    """What this vLLM lacks, one line each; empty = it fits."""
    found = []
    for name, wanted in PARAMETERS.items():
        method = getattr(GPUModelRunner, name, None)
        offered = tuple(inspect.signature(method).parameters) if method else None
        if offered != wanted:
            found.append(f"GPUModelRunner.{name} takes {offered}, not {wanted}")
    for owner, fields in ((SchedulerOutput, SCHEDULED), (FullAttentionSpec, SPEC)):
        present = inspect.signature(owner).parameters
        found += [f"{owner.__name__} has no {field}" for field in fields if field not in present]
    return found


def faults_v2() -> list[str]:
    """The same of the V2 runner."""
    from vllm.v1.worker.gpu import spec_decode
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

    made, step = (tuple(inspect.signature(f).parameters) for f in (spec_decode.init_speculator, BaseSpeculator.propose))
    found = [] if made == V2_INIT else [f"init_speculator takes {made}, not {V2_INIT}"]
    if step[: len(V2_PROPOSE)] != V2_PROPOSE or not {*V2_NAMED} <= {*step}:
        found.append(f"BaseSpeculator.propose takes {step}, not {V2_PROPOSE} ... {V2_NAMED}")
    present = inspect.signature(InputBatch).parameters
    return found + [f"InputBatch has no {field}" for field in V2_BATCH if field not in present]


def check(found: list[str]) -> None:
    """Raises RuntimeError, in one line, where vLLM does not offer what an adapter relies on (faults or faults_v2)."""
    if found:
        raise RuntimeError(
            f"sparrow: vLLM {version()} does not fit (tested: {', '.join(TESTED)}; docs/engines.md): {'; '.join(found)}"
        )


def refuse(config: Any) -> None:
    """Raises ValueError, naming the option, for what is not supported together with this drafter."""
    parallel, scheduler = config.parallel_config, config.scheduler_config
    refused = {
        "pipeline parallelism (pipeline_parallel_size)": parallel.pipeline_parallel_size > 1,
        "context parallelism (decode_context_parallel_size)": parallel.decode_context_parallel_size > 1,
        "LoRA (enable_lora)": config.lora_config is not None,
        "KV transfer (kv_transfer_config)": config.kv_transfer_config is not None,
        "prompt embeddings (enable_prompt_embeds)": bool(getattr(config.model_config, "enable_prompt_embeds", False)),
        "micro-batches (enable_dbo)": bool(getattr(parallel, "enable_dbo", False)),
        "asynchronous scheduling (async_scheduling)": bool(scheduler.async_scheduling),
    }
    if found := [name for name, present in refused.items() if present]:
        raise ValueError(f"sparrow: not supported with a drafter in vLLM: {', '.join(found)}")


def install() -> None:
    """Wraps the method, once per process, so that a proposer with `propose_step` gets the step itself.

    vLLM's custom_class hook hands over the drawn tokens and not the target's states. Every other proposer goes the old
    way.
    """
    original = getattr(GPUModelRunner, WRAPPED)
    if getattr(original, "sparrow", False):
        return

    @functools.wraps(original)
    def wrapper(self, scheduler_output, sampled_token_ids, sampling_metadata, hidden_states, *rest):
        step = getattr(self.drafter, "propose_step", None)
        if step is None:
            return original(self, scheduler_output, sampled_token_ids, sampling_metadata, hidden_states, *rest)
        return step(self, scheduler_output, sampled_token_ids, hidden_states, rest[-1])

    wrapper.sparrow = True  # type: ignore[attr-defined]
    setattr(GPUModelRunner, WRAPPED, wrapper)
    if current_platform.is_cpu():
        rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(x, cu_num_tokens, num_tokens, replace_from=0, replace_to=0):
    """x[b] for each token of request b, as vLLM's function of this name; on the CPU platform in its place.

    vLLM 0.32's CPU kernel writes float temperatures into a copy of the output that is then lost, so that every drafted
    row is drawn at an uninitialised temperature, with any drafter.
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    if replace_from != replace_to:
        x = x.where(x != replace_from, x.new_tensor(replace_to))
    return x.repeat_interleave(counts.long(), output_size=num_tokens)
