"""`sparrow train drafter --plan`: what each stage takes on this machine, and what does not fit."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparrow.cli.loading import load_model
from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.storage import shape_of
from sparrow.progress import Progress
from sparrow.targets.adapter import Target
from sparrow.targets.folder import TargetFolder
from sparrow.targets.teacher import teacher_states
from sparrow.training.clips import Clips
from sparrow.training.initial import config_of, layers_of
from sparrow.training.plan import (
    SPARE,
    Lengths,
    Need,
    free_disk,
    free_memory,
    lengths_of,
    needs,
    on_meta,
    seconds_of_a_step,
)
from sparrow.training.recipe import DrafterTraining
from sparrow.training.trainer import optimisers

NEW = 8  # tokens of the measured answer


def run(config: DrafterTraining, folder: pathlib.Path, clips: Clips, device: torch.device) -> int:
    """Prints the plan; writes nothing. Exit code 1 where something does not fit."""
    target = TargetFolder(folder)
    kind = target.dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
    shape = shape_of(target.text) | {"target": target.fingerprint()}
    drafter = config_of(shape, config, int(target.text.num_hidden_layers))
    lengths = lengths_of(clips, _is_text(target), config.answers.max_new_tokens)
    weights = target.bytes() * kind.itemsize // target.dtype().itemsize
    found = needs(config, target.text, weights, drafter, len(clips), lengths, kind.itemsize)
    memory, disk = free_memory(device), free_disk(pathlib.Path(config.run))
    jobs = len(clips) * len(config.answers.temperatures)
    seconds = _measured(config, folder, clips, lengths, device, found, memory)
    hours = [s and s * n / 3600 for s, n in zip(seconds, (jobs, jobs, config.optimisation.steps), strict=True)]
    faults = _show(found, hours, memory, disk, _about(drafter, target, config, lengths, len(clips)))
    print("\n".join(faults or ["Everything fits."]))
    return 1 if faults else 0


def _is_text(target: TargetFolder) -> Callable[[Tensor], Tensor]:
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    marks = [value for name in names if (value := getattr(target.config, name, None)) is not None]
    return lambda ids: ~torch.isin(ids, torch.tensor(marks))


def _about(drafter: DrafterConfig, target: TargetFolder, config: DrafterTraining, lengths: Lengths, clips: int) -> str:
    number = sum(p.numel() for p in on_meta(drafter, target.vocab_size, config).parameters())
    return (
        f"{clips} clips; of the longest {lengths.text} text and {lengths.visual} visual tokens, and up to "
        f"{lengths.answer} of answer; drafter: {number / 1e6:.1f} million weights"
    )


def _measured(
    config: DrafterTraining, folder: pathlib.Path, clips: Clips, lengths: Lengths, device: torch.device,
    found: list[Need], memory: int,
) -> list[float | None]:  # fmt: skip
    """Seconds of one answer, of one clip's states and of one step; None where there is no room to try."""
    seconds: list[float | None] = [None, None, None]
    if min(need.memory for need in found[:2]) > SPARE * memory:
        return seconds
    target = Target(load_model(folder, config.dtype, device, False))
    inputs = target.inputs(clips.inputs(0))
    with Progress("measuring"), torch.no_grad():
        first, more = (_timed(lambda: _answer(target, inputs, 1)), _timed(lambda: _answer(target, inputs, 1 + NEW)))
        seconds[0] = first + lengths.answer * max(0.0, more - first) / NEW
        used = layers_of(target.num_layers, config)
        answer = torch.zeros(lengths.answer, dtype=torch.int64)
        layers = [*used[0], *(() if used[1] is None else (used[1],))]
        seconds[1] = _timed(lambda: teacher_states(target, inputs, answer, layers, config.states.positions))
    if found[2].memory <= SPARE * memory:
        with Progress("measuring a step"):
            seconds[2] = _step(target, config, lengths)
    return seconds


def _answer(target: Target, inputs: dict[str, Any], tokens: int) -> None:
    target.model.generate(**inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)


def _step(target: Target, config: DrafterTraining, lengths: Lengths) -> float:
    shape = shape_of(target.config) | {"target": target.fingerprint()}
    drafter = SparrowDrafter(config_of(shape, config, target.num_layers))
    drafter.place(target.device, torch.float32)
    rows = min(config.drafter.draft_vocab or target.vocab_size, target.vocab_size)
    if drafter.config.draft_vocab:
        drafter.set_draft_vocab(torch.arange(rows, device=target.device))
    if drafter.config.own_head:
        drafter.set_head(torch.zeros(rows, drafter.config.hidden_size, device=target.device))
    drafter.attach(target)
    drafter.train().requires_grad_(True)
    return seconds_of_a_step(drafter, config, lengths, optimisers(drafter, config.optimisation))


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _show(found: list[Need], hours: list[float | None], memory: int, disk: int, about: str) -> list[str]:
    """Prints the table. Returns what does not fit, with what mends it."""
    table = Table(
        "stage", "memory at most", "disk", "tokens at most", "hours at most", title=about, title_justify="left"
    )
    faults = []
    for need, time_of in zip(found, hours, strict=True):
        parts = "\n".join(f"  {_size(n)} {name}" for name, n in need.parts.items() if n)
        spent = "not measured" if time_of is None else f"{time_of:.2f}"
        table.add_row(need.stage, f"{_size(need.memory)}\n{parts}", _size(need.disk), f"{need.tokens:,}", spent)
        for what, wanted, free in (("memory", need.memory, memory), ("disk", need.disk, disk)):
            if wanted > SPARE * free:
                mend = need.mend[:1] if what == "disk" else need.mend
                advice = f"; try {', or '.join(mend)}" if mend else "; it needs a larger machine"
                faults.append(f"{need.stage} does not fit: {_size(wanted)} of {what}, {_size(free)} are free{advice}")
    Console().print(table)
    print(f"Free: {_size(memory)} of memory, {_size(disk)} of disk. Hours: of this machine, one prompt at a time.")
    return faults


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 100 else f"{number / 2**20:.2f} MiB"
