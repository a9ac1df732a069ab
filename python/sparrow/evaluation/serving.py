"""A pair inside vLLM beside vLLM without a drafter: accepted length, tokens per second and latency under load."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparrow.engines.vllm_prompts import vllm_prompt
from sparrow.engines.vllm_worker import Engine, Pass, speculating
from sparrow.evaluation.questions import Question
from sparrow.video import VideoInfo

CONCURRENT = (1, 4, 16, 32)
PLAIN, OURS = "vLLM", "vLLM with sparrow"


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        concurrent: requests at a time; as one is finished the next one comes.
        requests: of each point, at least twice as many as at a time.
        rounds: passes of each system, which take turns; figures are medians.
        length: drafts a step.
        max_new_tokens: longest answer; greedy.
    """

    concurrent: tuple[int, ...] = CONCURRENT
    requests: int = 16
    rounds: int = 3
    length: int = 4
    max_new_tokens: int = 128


def prompts_of(tokenizer: Any, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """The questions as vLLM takes them, one video each."""
    made = []
    for one in questions:
        count, height, width = one.clip.frames.shape[:3]
        info = VideoInfo(count, one.clip.fps, tuple(range(count)), height, width)
        made.append(vllm_prompt(tokenizer, one.clip.prompt, [(one.clip.frames, info)]))
    return made


def measure(
    target: str, drafter: str, prompts: Sequence[dict[str, Any]], load: Load, options: dict[str, Any],
    tell: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Both engines live at once, in processes of their own, and take turns. Each pass runs over the same questions.

    Args:
        prompts: the questions; they come again where a point needs more.
        options: arguments of vLLM's LLM for both.
        tell: called with what is done next.

    Returns:
        "points": a row per number of concurrent requests, "identical": whether all greedy answers are the same,
        "answers": those of vLLM without a drafter, per question.
    """
    tell("two engines start")
    most = max(load.concurrent)
    options = {"enable_prefix_caching": False, "max_num_seqs": most} | options
    with Engine(target, options) as plain, Engine(target, options | speculating(drafter, load.length)) as ours:
        systems = {PLAIN: plain, OURS: ours}
        asked, sampling = list(prompts), {"temperature": 0, "max_tokens": load.max_new_tokens}
        first = {name: engine.run(asked, [sampling] * len(asked), most) for name, engine in systems.items()}
        answers = [one.ids for one in first[PLAIN].done]
        identical, points = [one.ids for one in first[OURS].done] == answers, []
        for concurrent in load.concurrent:
            count = max(load.requests, 2 * concurrent)
            numbers = [i % len(asked) for i in range(count)]
            passes: dict[str, list[Pass]] = {name: [] for name in systems}
            for turn in range(load.rounds):
                for name in list(systems)[:: 1 if turn % 2 else -1]:
                    tell(f"{concurrent} at a time, round {turn + 1} of {load.rounds}, {name}")
                    one = systems[name].run([asked[i] for i in numbers], [sampling] * count, concurrent)
                    identical &= [x.ids for x in one.done] == [answers[i] for i in numbers]
                    passes[name].append(one)
            points.append(_point(concurrent, count, passes))
    return {"load": asdict(load), "identical": identical, "points": points, "answers": answers}


def _point(concurrent: int, requests: int, passes: dict[str, list[Pass]]) -> dict[str, Any]:
    rows = {name: _row(of) for name, of in passes.items()}
    ratio = statistics.median(
        ours.tokens / ours.seconds / (plain.tokens / plain.seconds)
        for ours, plain in zip(passes[OURS], passes[PLAIN], strict=True)
    )
    return {"concurrent": concurrent, "requests": requests, "systems": rows, "throughput_ratio": ratio}


def _row(passes: list[Pass]) -> dict[str, float | None]:
    seconds = [one.seconds for of in passes for one in of.done]
    firsts = [one.first for of in passes for one in of.done]
    counted = {name: sum(of.counters.get(name, 0) for of in passes) for name in ("drafts", "drafted", "accepted")}
    return {
        "tokens_per_second": statistics.median(of.tokens / of.seconds for of in passes),
        "latency_median": float(np.median(seconds)),
        "latency_p95": float(np.quantile(seconds, 0.95)),
        "first_token_median": float(np.median(firsts)),
        "accepted_length": 1 + counted["accepted"] / counted["drafts"] if counted["drafts"] else None,
        **counted,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown of what `measure` returned."""
    lines = [
        "| at a time | system | tokens/s | latency, median (s) | 95 % (s) | first token (s) | accepted length |",
        "|---|---|---|---|---|---|---|",
    ]
    for point in result["points"]:
        for name, row in point["systems"].items():
            length = "" if row["accepted_length"] is None else f"{row['accepted_length']:.2f}"
            times = " | ".join(f"{row[k]:.2f}" for k in ("latency_median", "latency_p95", "first_token_median"))
            lines.append(f"| {point['concurrent']} | {name} | {row['tokens_per_second']:.1f} | {times} | {length} |")
    return "\n".join(lines)
