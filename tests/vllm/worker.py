"""One vLLM engine in a process of its own: reads a job as JSON from stdin, writes what came of it to a file.

    python -m tests.vllm.worker RESULT.json < JOB.json

A job is {"target": FOLDER, "options": {...} of LLM, "passes": [{"cases": [...], "sampling": {...}, "together": bool}]};
a result is {"passes": [{"tokens": [[...]], "cached": [...], "seconds": s, "metrics": {...}}]}, metrics counted over the
pass. A pass may be a chat, too: {"messages": [...], "sampling": {...}} gives {"text": ...}.

SPARROW_SLOWED=N in the environment: a step that drafts N tokens takes a second more; "slowed" says how many did.
"""

import json
import os
import sys
import time
import types
from unittest import mock

from sparrow.engines.chain import ChainDrafter
from sparrow.engines.vllm_worker import counters
from tests.vllm.cases import prompt_of


def interpreted() -> None:
    """Triton's kernels, which the V2 runner is made of, by Triton's interpreter: vLLM looks for a driver of the CPU."""
    from triton.backends import backends

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    backends["cpu"] = types.SimpleNamespace(driver=Driver, compiler=None)


SLOWED: list[int] = []


def slow_down(slow: int) -> None:
    """Steps that draft so many tokens take a second more, and are counted."""
    after = ChainDrafter.after

    def waiting(self, *args):
        if args[-1] == slow:
            SLOWED.append(slow)
            time.sleep(1)
        return after(self, *args)

    mock.patch.object(ChainDrafter, "after", waiting).start()


def main() -> None:
    job = json.load(sys.stdin)
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpreted()
    if slow := os.environ.get("SPARROW_SLOWED"):
        slow_down(int(slow))
    from vllm import LLM, SamplingParams

    llm = LLM(job["target"], **job["options"])
    passes = []
    for one in job["passes"]:
        if "messages" in one:
            (out,) = llm.chat(one["messages"], SamplingParams(**one["sampling"]), use_tqdm=False)
            passes.append({"text": out.outputs[0].text})
            continue
        prompts = [prompt_of(case, job["target"]) for case in one["cases"]]
        before, start = counters(llm), time.monotonic()
        groups = [prompts] if one.get("together") else [[p] for p in prompts]
        outs = [o for group in groups for o in llm.generate(group, SamplingParams(**one["sampling"]), use_tqdm=False)]
        passes.append({
            "tokens": [[list(x.token_ids) for x in o.outputs] for o in outs],
            "prompts": [len(o.prompt_token_ids) for o in outs],
            "cached": [o.num_cached_tokens for o in outs],
            "seconds": time.monotonic() - start,
            "slowed": len(SLOWED),
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
