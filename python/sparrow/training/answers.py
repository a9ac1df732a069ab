"""The target's own answers, generated once and kept as JSONL: the text a drafter learns to foresee."""

import collections
import itertools
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparrow.files import append_lines, lock, read_json, read_json_lines, write_json
from sparrow.progress import Progress
from sparrow.targets.adapter import Target
from sparrow.targets.borrow import lock_of
from sparrow.targets.positions import prompt_positions
from sparrow.training.clips import Clips
from sparrow.training.distributed import Ranks
from sparrow.training.recipe import Answers

SETTINGS = "settings.json"
PLACES = ("folder", "batch", "ahead")  # settings that do not change an answer, but for rounding
OTHER = "choose another folder, or remove it to start again"


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        clip: number of the clip.
        temperature: it was sampled at; 0 = greedy.
        ids: the answer's tokens, end of sequence included where it was reached.
        text_tokens, visual_tokens: of the prompt.
        asked: what was asked about what, Clips.describe.
    """

    clip: int
    temperature: float
    ids: tuple[int, ...]
    text_tokens: int
    visual_tokens: int
    asked: Mapping[str, object]


def keep_settings(folder: pathlib.Path, settings: Mapping[str, object], main: bool = True) -> None:
    """Writes what a folder was made with, or checks it.

    Raises:
        ValueError: the folder was made with other settings; the first that differs is named. Or the file is damaged.
    """
    file = folder / SETTINGS
    if not file.exists():
        if main:
            write_json(file, settings)
        return
    try:
        old, new = read_json(file), json.loads(json.dumps(settings))
    except ValueError as error:
        raise ValueError(
            f"{error}. It says what {folder} was made with: if nothing of that has changed, remove this file alone and "
            "it is written again; otherwise remove the folder"
        ) from None
    for key in new | old:
        if old.get(key) != new.get(key):
            raise ValueError(f"{folder} was made with {key}={old.get(key)!r}, now it is {new.get(key)!r}: {OTHER}")


def read_answers(folder: pathlib.Path) -> list[Answer]:
    """All answers of a folder, by clip and temperature; a last line cut short by a crash is left out.

    Raises:
        ValueError: another line is damaged; file and line are named.
    """
    found = {}
    for file in sorted(folder.glob("answers-*.jsonl")):
        try:
            for number, values in read_json_lines(file):
                answer = _answer(values, f"{file}, line {number}")
                found[answer.clip, answer.temperature] = answer
        except ValueError as error:
            raise ValueError(f"{error}. Remove this line: its clip is answered again") from None
    return [found[key] for key in sorted(found)]


def _answer(values: dict[str, Any], where: str) -> Answer:
    try:
        return Answer(**values | {"ids": tuple(values["ids"])})
    except (KeyError, TypeError):
        raise ValueError(f"{where} is damaged: it holds no answer") from None


def write_answers(
    target: Target, clips: Clips, config: Answers, positions: str, data: Mapping[str, object],
    folder: pathlib.Path, ranks: Ranks, engine: Any = None,
) -> list[Answer]:  # fmt: skip
    """Generates what is missing, each process its share, and returns the answers to all clips.

    Args:
        target: answers by transformers' own generate, with its generation config but for the temperature.
        clips: the questions.
        config: see Answers.
        positions: how prompts are numbered, "hf" or "reference".
        data: what the clips were made with, to be kept beside the answers.
        folder: where they go: answers-<rank>.jsonl.
        ranks: this process.
        engine: answers in place of transformers' generate, see EngineAnswers.

    Raises:
        ValueError: the folder was made with other settings, or a clip is not the one that was answered.
        BlockingIOError: answers are missing, and another process is writing them.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in PLACES}
    settings |= {} if engine is None else {"engine": engine.name}
    locked = None
    if ranks.main:
        keep_settings(folder, settings | {"target": target.fingerprint(), "positions": positions, "data": dict(data)})
        if _missing(folder, clips, config):
            locked = lock(folder)
    ranks.wait()  # what is missing stays so while everybody looks
    missing = _missing(folder, clips, config)
    ranks.wait()  # nobody writes before everybody has read
    mine = missing[ranks.rank :: ranks.world]
    with Progress("answering", len(mine), "answers", quiet=not ranks.main) as progress:
        start, tokens = time.perf_counter(), 0
        groups = batches_of(clips, mine, config.batch, config.ahead) if engine is None else engine.groups(mine)
        for group in groups:
            own = engine is None
            made = generate_answers(target, clips, group, config, positions) if own else engine.answer(group)
            append_lines(folder / f"answers-{ranks.rank}.jsonl", [json.dumps(asdict(answer)) for answer in made])
            tokens += sum(len(answer.ids) for answer in made)
            speed, free = tokens / (time.perf_counter() - start), shutil.disk_usage(folder).free / 2**30
            progress.update(text=f"answering, {speed:.1f} tokens/s, {free:.1f} GiB of disk free")
            progress.advance(len(group))
    ranks.wait()
    del locked
    return [answer for answer in read_answers(folder) if answer.clip < len(clips)]


def _missing(folder: pathlib.Path, clips: Clips, config: Answers) -> list[tuple[int, float]]:
    """Clips and temperatures without an answer; what is there must be about these clips."""
    done = {(a.clip, a.temperature): a for a in read_answers(folder) if a.clip < len(clips)}
    for (clip, _), answer in done.items():
        if answer.asked != clips.describe(clip):
            raise ValueError(f"clip {clip} was answered as {answer.asked}, now it is {clips.describe(clip)}: {OTHER}")
    return [(c, t) for c in range(len(clips)) for t in config.temperatures if (c, t) not in done]


Job = tuple[int, float, dict[str, Tensor]]


def batches_of(clips: Clips, jobs: Sequence[tuple[int, float]], size: int, ahead: int) -> Iterator[list[Job]]:
    """Jobs of one temperature and of equal input shapes, `size` at a time.

    A thread decodes clips ahead. At most `ahead` of them, or one batch where that is more, are decoded and not yet
    answered: where as many wait for others of their shape, the largest group goes as it is.
    """
    waiting: dict[object, list[Job]] = {}
    coming: collections.deque[tuple[int, float, Future[dict[str, Tensor]]]] = collections.deque()
    todo, bound, held = iter(jobs), max(ahead, size), 0
    with ThreadPoolExecutor(1) as pool:
        try:
            while True:
                for clip, temperature in itertools.islice(todo, bound - held - len(coming)):
                    coming.append((clip, temperature, pool.submit(clips.inputs, clip)))
                if not coming:
                    break
                clip, temperature, future = coming.popleft()
                inputs = future.result()
                del future
                key: object = (temperature, tuple((k, tuple(v.shape)) for k, v in sorted(inputs.items())))
                waiting.setdefault(key, []).append((clip, temperature, inputs))
                held += 1
                if len(waiting[key]) < size:
                    if held < bound:
                        continue
                    key = max(waiting, key=lambda k: len(waiting[k]))
                held -= len(waiting[key])
                del inputs
                yield waiting.pop(key)
        finally:
            pool.shutdown(cancel_futures=True)
        while waiting:
            yield waiting.pop(next(iter(waiting)))


@torch.no_grad()
def generate_answers(
    target: Target, clips: Clips, jobs: Sequence[Job], config: Answers, positions: str
) -> list[Answer]:
    """Answers a group of equal shapes and one temperature by transformers' generate, as one batch.

    At temperature 0 a row does not depend on its group but for rounding; sampled rows depend on the seed and the group.
    """
    temperature = jobs[0][1]
    options: dict[str, object] = {"do_sample": False}
    if temperature > 0:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    inputs: dict[str, object] = {k: torch.cat([job[2][k] for job in jobs]) for k in jobs[0][2]}
    ids = [prompt_positions(target, dict(job[2]), positions) for job in jobs]
    inputs = target.inputs(inputs)
    if ids[0] is not None:
        inputs["position_ids"] = torch.cat([x for x in ids if x is not None], dim=1).to(target.device)
    devices = [target.device] if target.device.type == "cuda" else []
    with lock_of(target.model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed * 1_000_003 + jobs[0][0])
        out = target.model.generate(**inputs, **options, max_new_tokens=config.max_new_tokens)
    prompt = jobs[0][2]["input_ids"]
    is_text = target.is_text(prompt[0])
    ends = target.model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    text, visual = int(is_text.sum()), int((~is_text).sum())
    return [
        Answer(clip, temperature, _until_end(row, ends), text, visual, clips.describe(clip))
        for (clip, _, _), row in zip(jobs, out[:, prompt.shape[1] :].tolist(), strict=True)
    ]


def _until_end(ids: list[int], ends: set[int]) -> tuple[int, ...]:
    """Up to the first end of sequence, included; generate() pads a batch behind it."""
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return tuple(ids[: stop + 1])
