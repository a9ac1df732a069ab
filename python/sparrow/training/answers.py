"""The target's own answers, generated once and kept as JSONL: the text a drafter learns to foresee."""

import itertools
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparrow.files import append_lines, lock, read_json, read_json_lines, write_json
from sparrow.progress import Progress
from sparrow.targets.adapter import Target
from sparrow.training.asking import Reply, prepared, replies
from sparrow.training.clips import Clips
from sparrow.training.distributed import Ranks
from sparrow.training.recipe import Answers

SETTINGS = "settings.json"
# settings that do not change an answer, but for rounding
PLACES = ("folder", "batch", "batch_tokens", "ahead", "workers")
WHICH = "temperatures"  # the setting that says which answers are asked for: a folder may hold more
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
    old.pop(WHICH, None)  # a folder of before kept them
    old.get("answers", {}).pop(WHICH, None)
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
        target: answers by plain decoding, with its generation config but for the temperature.
        clips: the questions.
        config: see Answers.
        positions: how prompts are numbered, "hf" or "reference".
        data: what the clips were made with, to be kept beside the answers.
        folder: where they go: answers-<rank>.jsonl.
        ranks: this process.
        engine: answers in place of plain decoding, see EngineAnswers.

    Raises:
        ValueError: the folder was made with other settings, or a clip is not the one that was answered.
        BlockingIOError: answers are missing, and another process is writing them.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in (*PLACES, WHICH)}
    settings |= {} if engine is None else {"engine": engine.name}
    locked = None
    if ranks.main:
        keep_settings(folder, settings | {"target": target.fingerprint(), "positions": positions, "data": dict(data)})
        if _missing(folder, clips, config):
            locked = lock(folder)
    ranks.wait()  # what is missing stays so while everybody looks
    missing = _missing(folder, clips, config)
    ranks.wait()  # nobody writes before everybody has read
    jobs = [(clip, tuple(t for _, t in same)) for clip, same in itertools.groupby(missing, lambda job: job[0])]
    mine = jobs[ranks.rank :: ranks.world]
    answering = engine.answers(mine) if engine else _own_answers(target, clips, config, positions, mine)
    count = sum(len(temperatures) for _, temperatures in mine)
    with Progress("answering", count, "answers", quiet=not ranks.main) as progress:
        start, tokens = time.perf_counter(), 0
        for made in answering:
            append_lines(folder / f"answers-{ranks.rank}.jsonl", [json.dumps(asdict(answer)) for answer in made])
            tokens += sum(len(answer.ids) for answer in made)
            speed, free = tokens / (time.perf_counter() - start), shutil.disk_usage(folder).free / 2**30
            progress.update(text=f"answering, {speed:.1f} tokens/s, {free:.1f} GiB of disk free")
            progress.advance(len(made))
    ranks.wait()
    del locked
    return [a for a in read_answers(folder) if a.clip < len(clips) and a.temperature in config.temperatures]


def _own_answers(
    target: Target, clips: Clips, config: Answers, positions: str, jobs: Sequence[tuple[int, tuple[float, ...]]]
) -> Iterator[list[Answer]]:
    asked = prepared(clips, jobs, config.ahead - config.ahead // 2, config.workers)
    for made in replies(target, config, positions, asked):
        yield [_answered(target, clips, reply) for reply in made]


def _answered(target: Target, clips: Clips, reply: Reply) -> Answer:
    clip, is_text = reply.asked.clip, target.is_text(reply.asked.inputs["input_ids"])
    text, visual = int(is_text.sum()), int((~is_text).sum())
    return Answer(clip, reply.temperature, tuple(reply.ids), text, visual, clips.describe(clip))


def _missing(folder: pathlib.Path, clips: Clips, config: Answers) -> list[tuple[int, float]]:
    """Clips and temperatures without an answer; what is there must be about these clips."""
    done = {(a.clip, a.temperature): a for a in read_answers(folder) if a.clip < len(clips)}
    for (clip, _), answer in done.items():
        if answer.asked != clips.describe(clip):
            raise ValueError(f"clip {clip} was answered as {answer.asked}, now it is {clips.describe(clip)}: {OTHER}")
    return [(c, t) for c in range(len(clips)) for t in config.temperatures if (c, t) not in done]
