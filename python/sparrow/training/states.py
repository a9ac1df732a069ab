"""The target's states along all answers: computed once and kept on disk, or computed when asked for."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from sparrow.files import lock, sweep, write_tensors
from sparrow.progress import console, track
from sparrow.targets.adapter import Target
from sparrow.targets.teacher import teacher_states
from sparrow.training.answers import Answer, keep_settings
from sparrow.training.clips import Clips
from sparrow.training.distributed import Ranks
from sparrow.training.recipe import DrafterTraining, States
from sparrow.training.sequences import Batch, collate, sequence, stored

AGAIN = "Remove this file: the states are computed again"
NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}  # what rounding may make of states, relative


class LiveStates:
    """States computed whenever they are asked for.

    Args:
        target, clips: what answered what.
        config: dtype and numbering.
        hidden_layers, visual_layer: indices into hidden_states; visual_layer None = no visual rows.
        visual_states: whether visual rows have states of hidden_layers, too.
    """

    def __init__(
        self, target: Target, clips: Clips, config: States, hidden_layers: Sequence[int], visual_layer: int | None,
        visual_states: bool = False,
    ):  # fmt: skip
        self.target, self.clips, self.config = target, clips, config
        self.hidden_layers, self.visual_layer, self.visual_states = tuple(hidden_layers), visual_layer, visual_states
        self.dtype = target.embedding.dtype if config.dtype == "target" else getattr(torch, config.dtype)

    def load(self, answer: Answer) -> dict[str, Tensor]:
        """See sequences.stored; on the CPU, floating values in the configured dtype.

        Raises:
            ValueError: the clip is not the one that was answered: its prompt has another length.
        """
        inputs = self.target.inputs(self.clips.inputs(answer.clip))
        if inputs["input_ids"].shape[1] != answer.text_tokens + answer.visual_tokens:
            raise ValueError(
                f"clip {answer.clip} has a prompt of {inputs['input_ids'].shape[1]} tokens; it was answered with "
                f"{answer.text_tokens + answer.visual_tokens}: the data or the video settings have changed"
            )
        ids = torch.tensor(answer.ids)
        layers = [self.target.num_layers, *self.hidden_layers]
        layers += [] if self.visual_layer is None else [self.visual_layer]
        teacher = teacher_states(self.target, inputs, ids, layers, self.config.positions)
        kept = stored(teacher, len(ids), self.hidden_layers, self.visual_layer, self.visual_states)
        return {k: v.to("cpu", self.dtype if v.is_floating_point() else v.dtype) for k, v in kept.items()}


class CachedStates:
    """One safetensors file per answer, memory-mapped when read."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def file(self, answer: Answer) -> pathlib.Path:
        return self.folder / f"{answer.clip // 1000:04d}" / f"{answer.clip:07d}-t{answer.temperature:g}.safetensors"

    def load(self, answer: Answer) -> dict[str, Tensor]:
        """See sequences.stored.

        Raises:
            ValueError: the file is damaged, or of another answer; it is named.
        """
        try:
            with safe_open(self.file(answer), framework="pt") as file:
                kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            same = kept["tokens"][int(kept["first"]) :].tolist() == list(answer.ids)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{self.file(answer)} is damaged: {error}. {AGAIN}") from None
        if not same:
            raise ValueError(f"{self.file(answer)} holds the states of another answer. {AGAIN}")
        return kept

    def _is_there(self, answer: Answer) -> bool:
        """Whether the answer's file is there and as long as its head says."""
        try:
            with safe_open(self.file(answer), framework="pt"):
                return True
        except (FileNotFoundError, SafetensorError):
            return False

    def check(self, live: LiveStates, answers: Sequence[Answer]) -> None:
        """Computes the states of some answers again, live.config.check of them, spread over all.

        Raises:
            ValueError: what is kept is not what the target says now, but for rounding; the file is named.
        """
        number = min(live.config.check, len(answers))
        for at in [round((i + 0.5) * len(answers) / number - 0.5) for i in range(number)]:
            kept, new = self.load(answers[at]), live.load(answers[at])
            for name in kept | new:
                fault = _difference(kept.get(name), new.get(name))
                if fault is not None:
                    raise ValueError(
                        f"{self.file(answers[at])}: {name} is not what the target says now ({fault}). Have its "
                        f"weights, the clips or their settings changed? Remove {self.folder}, or set "
                        "another states.folder"
                    )

    def fill(self, live: LiveStates, answers: Sequence[Answer], settings: Mapping[str, object], ranks: Ranks) -> int:
        """Computes what is missing or damaged, each process its share. Returns the bytes on disk.

        Raises:
            ValueError: the folder was made with other settings, or states in it are not the target's, see check.
            BlockingIOError: states are missing, and another process is writing them.
        """
        locked = None
        if ranks.main:
            keep_settings(self.folder, settings)
            if not all(map(self._is_there, answers)):
                locked = lock(self.folder)
                for folder in {self.file(a).parent for a in answers}:
                    sweep(folder)
        ranks.wait()  # what is missing stays so while everybody looks
        missing = [a for a in answers if not self._is_there(a)]
        ranks.wait()  # nobody writes before everybody has looked
        mine = missing[ranks.rank :: ranks.world]
        for answer in track(mine, "the target's states", "answers", quiet=not ranks.main):
            if self.file(answer).exists():
                console.print(f"{self.file(answer)} is damaged: computed again")
            write_tensors(self.file(answer), live.load(answer))
        ranks.wait()
        if ranks.main:
            self.check(live, answers)
        del locked
        return sum(self.file(a).stat().st_size for a in answers)


def _difference(kept: Tensor | None, new: Tensor | None) -> str | None:
    """What of a value is not the same, but for rounding; None = nothing."""
    if kept is None or new is None or kept.shape != new.shape or kept.dtype != new.dtype:
        words = ["none" if x is None else f"{x.dtype} {list(x.shape)}" for x in (kept, new)]
        return f"{words[0]}, now {words[1]}"
    if not kept.is_floating_point():
        return None if torch.equal(kept, new) else "other numbers"
    norm = float(new.double().norm())
    away = float((kept.double() - new.double()).norm())
    return None if away <= NEAR[new.dtype] * norm else f"{away / norm if norm else away:.2g} of its norm away"


class Sequences(Dataset):
    """Training sequences by (answer number, step, whether its losses count).

    The step seeds the noise, so that a resumed run sees the same; -1 = no noise.

    Args:
        states: LiveStates or CachedStates.
        answers: what to train on.
        config: numbering, noise, seed.
    """

    def __init__(self, states: LiveStates | CachedStates, answers: Sequence[Answer], config: DrafterTraining):
        self.states, self.answers, self.config = states, answers, config

    def __getitem__(self, key: tuple[int, int, bool]) -> Batch:
        at, step, counts = key
        kept, noise, recipe = self.states.load(self.answers[at]), None, self.config.recipe
        if recipe.noise and step >= 0:
            generator = torch.Generator().manual_seed((self.config.optimisation.seed << 40) + (step << 20) + at)
            noise = (torch.rand(kept["hidden"].shape, generator=generator) - 0.5) * recipe.noise
        rows = sequence(kept, self.config.drafter.positions, recipe.visual_positions, noise)
        return rows if counts else replace(rows, loss_pass=torch.zeros_like(rows.loss_pass))

    def validation(self, rows: int) -> Iterator[Batch]:
        """All sequences once, without noise."""
        lengths = [sequence_rows(a, self.config.recipe.visual) for a in self.answers]
        for group in pack(range(len(lengths)), lengths, rows):
            yield collate([self[at, -1, True] for at in group])


def sequence_rows(answer: Answer, visual: bool) -> tuple[int, int]:
    """Text and visual rows of the training sequence."""
    return answer.text_tokens + len(answer.ids), answer.visual_tokens if visual else 0


def pack(order: Sequence[int] | range, lengths: Sequence[tuple[int, int]], rows: int) -> Iterator[list[int]]:
    """Consecutive groups whose padded size, sequences * (longest text + most visual rows), is at most `rows`.

    Raises:
        ValueError: a sequence is longer than that.
    """
    longest = max((sum(lengths[at]) for at in order), default=0)
    if longest > rows:
        raise ValueError(f"optimisation.batch_rows must hold the longest sequence ({longest} rows), got {rows}")
    group: list[int] = []
    text = visual = 0
    for at in order:
        t, v = lengths[at]
        if group and (len(group) + 1) * (max(text, t) + max(visual, v)) > rows:
            yield group
            group, text, visual = [], 0, 0
        group.append(at)
        text, visual = max(text, t), max(visual, v)
    if group:
        yield group


def batches(lengths: Sequence[tuple[int, int]], rows: int, seed: int) -> Iterator[list[int]]:
    """Endless batches over shuffled epochs; sequences of similar length go together."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed((seed << 20) + epoch)
        order = torch.randperm(len(lengths), generator=generator).tolist()
        chunks = [sorted(order[i : i + 256], key=lambda at: lengths[at]) for i in range(0, len(order), 256)]
        groups = [group for chunk in chunks for group in pack(chunk, lengths, rows)]
        yield from (groups[i] for i in torch.randperm(len(groups), generator=generator).tolist())
        epoch += 1
