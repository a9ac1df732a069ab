"""The target's own answers by vLLM's engine: many at a time, as one is finished the next one comes."""

from collections.abc import Iterator, Sequence
from typing import Any

from sparrow.engines.vllm_prompts import numbering_of, vllm_prompt
from sparrow.engines.vllm_worker import Engine
from sparrow.targets.adapter import Target
from sparrow.training.answers import Answer
from sparrow.training.clips import Clips
from sparrow.training.recipe import Answers

KEPT = 8  # batches between two writes to the disk: at most so many are lost where a run is stopped


class EngineAnswers:
    """Answers jobs (clip, temperature) in place of plain decoding.

    Args:
        engine: runs the target.
        target: says which tokens are text; it generates nothing.
        tokenizer: the target's.
        clips: the questions; of clips with `shown`.
        config: see Answers; `batch` requests run at a time.
        positions: how prompts are numbered.

    Raises:
        ValueError: vLLM numbers this target's prompts by another rule.
    """

    name = "vllm"

    def __init__(self, engine: Engine, target: Target, tokenizer: Any, clips: Clips, config: Answers, positions: str):
        family = str(target.fingerprint()["family"])
        if positions != (own := numbering_of(family)):
            raise ValueError(f"states.positions must be {own} for {family} in vLLM, which numbers so; got {positions}")
        self.engine, self.target, self.tokenizer, self.clips, self.config = engine, target, tokenizer, clips, config

    def answers(self, jobs: Sequence[tuple[int, tuple[float, ...]]]) -> Iterator[list[Answer]]:
        """Answers to (clip, temperatures), as many as are answered before they are written down."""
        single, size = [(clip, t) for clip, temperatures in jobs for t in temperatures], self.config.batch * KEPT
        for first in range(0, len(single), size):
            yield self.answer(single[first : first + size])

    def answer(self, jobs: Sequence[tuple[int, float]]) -> list[Answer]:
        """At temperature 0 an answer depends on its clip alone but for rounding; else on clip and seed."""
        prompts = [vllm_prompt(self.tokenizer, *self.clips.shown(clip)) for clip, _ in jobs]
        sampling = [self._sampling(*job) for job in jobs]
        made = []
        for (clip, temperature), one in zip(
            jobs, self.engine.run(prompts, sampling, self.config.batch).done, strict=True
        ):
            text = int(self.target.is_text(self._row(one.prompt)).sum())
            made.append(Answer(clip, temperature, one.ids, text, len(one.prompt) - text, self.clips.describe(clip)))
        return made

    def _row(self, ids: Sequence[int]) -> Any:
        return self.target.embedding.new_tensor(ids).long()

    def _sampling(self, clip: int, temperature: float) -> dict[str, Any]:
        penalty = getattr(self.target.model.generation_config, "repetition_penalty", None) or 1.0
        options: dict[str, Any] = {
            "temperature": temperature, "max_tokens": self.config.max_new_tokens, "repetition_penalty": penalty,
        }  # fmt: skip
        return options | ({"seed": self.config.seed * 1_000_003 + clip, "top_p": 1.0} if temperature > 0 else {})
