"""Prompts that are decoded ahead, in batches of similar length, and what the target says to them.

`replies` is one way to get answers; another takes the same prompts (`prepared`) and yields the same Reply.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparrow.decoding.generate import generate
from sparrow.targets.adapter import Target
from sparrow.training.clips import Clips
from sparrow.training.recipe import Answers
from sparrow.video import together
from sparrow.video.together import agreeing


@dataclass(frozen=True)
class Asked:
    """A prompt as the model reads it.

    Attributes:
        clip: its number.
        temperatures: it is to be answered at.
        inputs: of sparrow.video.prepare, one sequence.
    """

    clip: int
    temperatures: tuple[float, ...]
    inputs: dict[str, Tensor]

    @property
    def length(self) -> int:
        """Tokens, text and visual."""
        return int(self.inputs["input_ids"].shape[1])


@dataclass(frozen=True)
class Reply:
    """What was said to a prompt at one of its temperatures: tokens, end of sequence included where it was reached."""

    asked: Asked
    temperature: float
    ids: list[int]


def prepared(clips: Clips, jobs: Sequence[tuple[int, tuple[float, ...]]], ahead: int, workers: int) -> Iterator[Asked]:
    """Prompts in the order of the jobs, (clip, temperatures); threads decode up to `ahead` of them meanwhile.

    A prompt that cannot be made raises what Clips.inputs raises.
    """
    coming: collections.deque[tuple[int, tuple[float, ...], Future[dict[str, Tensor]]]] = collections.deque()
    todo = iter(jobs)
    with ThreadPoolExecutor(workers) as pool:

        def fill() -> None:
            for clip, temperatures in itertools.islice(todo, ahead - len(coming)):
                coming.append((clip, temperatures, pool.submit(clips.inputs, clip)))

        try:
            fill()
            while coming:
                clip, temperatures, future = coming.popleft()
                inputs = future.result()
                del future
                fill()
                yield Asked(clip, temperatures, inputs)
                del inputs
        finally:
            pool.shutdown(cancel_futures=True)


def batched(asked: Iterable[Asked], config: Answers) -> Iterator[list[Asked]]:
    """Batches of prompts of similar length that can be joined, the longest ones of a window first.

    At most config.batch prompts, of at most config.batch_tokens tokens, padding and the longest answers included; a
    prompt that alone has more goes alone. The window holds as many prompts as a batch and half of config.ahead; what is
    left of it and fewer than a batch waits for the next ones.
    """
    window: list[Asked] = []
    most, source = config.batch + config.ahead // 2, iter(asked)
    more = True
    while more:
        window.extend(itertools.islice(source, most - len(window)))
        more = len(window) == most
        window.sort(key=lambda one: (-one.length, one.clip))
        while len(window) >= (config.batch if more else 1):
            yield _take(window, config)


def _take(window: list[Asked], config: Answers) -> list[Asked]:
    """Removes a batch from the window: its first prompt, and those behind it that fit to it."""
    taken = [window.pop(0)]
    each, shapes = taken[0].length + config.max_new_tokens, agreeing(taken[0].inputs)
    for one in list(window):
        if len(taken) == config.batch or (len(taken) + 1) * each > config.batch_tokens:
            break
        own = agreeing(one.inputs)
        if all(shapes.get(name, shape) == shape for name, shape in own.items()):
            shapes |= own
            taken.append(one)
            window.remove(one)
    return taken


def replies(target: Target, config: Answers, positions: str, asked: Iterable[Asked]) -> Iterator[list[Reply]]:
    """The target's answers, a batch at a time, by plain decoding (sparrow.generate without a drafter).

    A sequence is what it is alone, but for rounding: it sees no padding, is drawn with a seed of its own, and costs
    nothing more once it has ended.
    """
    ends = target.model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    padding = int(target.model.generation_config.pad_token_id or 0)
    for batch in batched(asked, config):
        for temperature in config.temperatures:
            if group := [one for one in batch if temperature in one.temperatures]:
                made = target.inputs(together([one.inputs for one in group], padding))
                options: dict[str, Any] = {"do_sample": False}
                if temperature > 0:
                    options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
                seeds = [config.seed * 1_000_003 + one.clip for one in group]
                out = generate(
                    target.model, **made, **options, seed=seeds, positions=positions,
                    max_new_tokens=config.max_new_tokens,
                )  # fmt: skip
                rows = out.sequences[:, made["input_ids"].shape[1] :].tolist()
                del out, made
                yield [Reply(o, temperature, until_end(row, ends)) for o, row in zip(group, rows, strict=True)]


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """Up to the first end of sequence, included; behind it a batch is padded."""
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: stop + 1]
