"""One vLLM engine in a process of its own: reads a job as JSON from stdin, writes what came of it to a file.

    python -m tests.vllm.worker RESULT.json < JOB.json

A job is {"target": FOLDER, "options": {...} of LLM, "passes": [{"cases": [...], "sampling": {...}, "together": bool}]};
a result is {"passes": [{"tokens": [[...]], "cached": [...], "metrics": {...}}]}, metrics counted over the pass.
"""

import json
import os
import sys

from tests.vllm.cases import chat_text, clip

COUNTERS = {
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "drafted",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
    "vllm:num_preemptions": "preemptions",
}


def counters(llm) -> dict[str, int]:
    return {COUNTERS[m.name]: m.value for m in llm.get_metrics() if m.name in COUNTERS}


def prompt_of(case: dict, target: str) -> dict:
    """A case {"prompt", "frames": of the demo's clip; 0 = no video; several = several videos} as vLLM takes it."""
    frames = case["frames"] if isinstance(case["frames"], list) else [case["frames"]] if case["frames"] else []
    prompt = {"prompt": chat_text(target, case["prompt"], len(frames))}
    if frames:
        prompt["multi_modal_data"] = {"video": [clip(target, n) for n in frames]}
    return prompt


def main() -> None:
    job = json.load(sys.stdin)
    from vllm import LLM, SamplingParams

    llm = LLM(job["target"], **job["options"])
    passes = []
    for one in job["passes"]:
        prompts = [prompt_of(case, job["target"]) for case in one["cases"]]
        before = counters(llm)
        groups = [prompts] if one.get("together") else [[p] for p in prompts]
        outs = [o for group in groups for o in llm.generate(group, SamplingParams(**one["sampling"]), use_tqdm=False)]
        passes.append({
            "tokens": [[list(x.token_ids) for x in o.outputs] for o in outs],
            "prompts": [len(o.prompt_token_ids) for o in outs],
            "cached": [o.num_cached_tokens for o in outs],
            "metrics": {name: value - before.get(name, 0) for name, value in counters(llm).items()},
        })  # fmt: skip
    with open(sys.argv[1], "w") as file:
        json.dump({"passes": passes}, file)


if __name__ == "__main__":
    os.environ.update(
        HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind"
    )
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    main()
