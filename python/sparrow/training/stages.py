"""Training of a drafter: the target's answers, its states along them, then the steps. Every stage resumes."""

import pathlib
from dataclasses import asdict
from typing import Any

import torch

from sparrow.progress import console
from sparrow.targets.adapter import Target
from sparrow.training.answers import PLACES as ANSWERS
from sparrow.training.answers import WHICH, Answer, write_answers
from sparrow.training.clips import Clips
from sparrow.training.distributed import Ranks
from sparrow.training.initial import layers, new_drafter
from sparrow.training.recipe import DrafterTraining
from sparrow.training.run import Run
from sparrow.training.states import CachedStates, LiveStates, Sequences
from sparrow.training.trainer import Trainer

# Settings of a run that may change with the folders' places; what is in them is compared by their own settings.json.
PLACES = ("run", "target", "data.clips", "states.folder", "states.check", *(f"answers.{name}" for name in ANSWERS))


def prepare_answers(
    target: Target, clips: Clips, config: DrafterTraining, ranks: Ranks, engine: Any = None
) -> list[Answer]:
    """The target's answers to all clips, in <answers.folder>; engine: see write_answers."""
    folder = pathlib.Path(config.answers.folder or pathlib.Path(config.run) / "answers")
    return write_answers(target, clips, config.answers, config.states.positions, _data(config), folder, ranks, engine)


def train(target: Target, clips: Clips, config: DrafterTraining, ranks: Ranks | None = None) -> pathlib.Path:
    """Trains a drafter for the target and returns its folder, <run>/drafter.

    Args:
        target: frozen; evaluation mode.
        clips: what it is asked about.
        config: see DrafterTraining.
        ranks: this process; None = the only one.

    Raises:
        ValueError: settings that do not fit the target or each other, or a folder made with other settings.
    """
    ranks = ranks or Ranks()
    _check(target, clips, config)
    run = Run(config.run, config, main=ranks.main, places=PLACES)
    target.model.requires_grad_(False)
    answers = [a for a in prepare_answers(target, clips, config, ranks) if len(a.ids) > 1]  # one token drafts nothing
    held_out = range(len(clips) - config.data.validation, len(clips))
    training = [a for a in answers if a.clip not in held_out]
    validation = [a for a in answers if a.clip in held_out]
    if not training:
        raise ValueError("no clip is left to train on: each answer has fewer than two tokens, or is held out")
    states = states_of(target, clips, config, answers, ranks)
    drafter = new_drafter(target, config, training)
    trainer = Trainer(drafter, config, ranks, run)
    if trainer.step == 0 and ranks.main:
        run.log(
            training=len(training), validation=len(validation), left_out=len(clips) - len({a.clip for a in answers})
        )
    trainer.run_to_the_end(
        Sequences(states, training, config), Sequences(states, validation, config), target, clips
    )  # fmt: skip
    return trainer.folder


def _check(target: Target, clips: Clips, config: DrafterTraining) -> None:
    """Raises ValueError where settings do not fit the target, the clips or each other."""
    o = config.optimisation
    if o.autocast == "none" and target.embedding.dtype != torch.float32:
        raise ValueError(f"optimisation.autocast must be bfloat16 for a target in {target.embedding.dtype}")
    if o.workers and not config.states.cache:
        raise ValueError(f"optimisation.workers must be 0 where states.cache is false, got {o.workers}")
    if config.data.validation >= len(clips):
        raise ValueError(
            f"data.validation must be below the number of clips ({len(clips)}), got {config.data.validation}"
        )
    layers(target, config)


def _data(config: DrafterTraining) -> dict[str, object]:
    """What a clip's number means; more clips may come, a file of them may move, and the split may change."""
    values = {k: v for k, v in asdict(config.data).items() if k != "validation"}
    names = ("num_frames", "fps") if config.data.clips else ("first", "kind", "frames", "side")
    return {name: values[name] for name in names}


def states_of(target: Target, clips: Clips, config: DrafterTraining, answers: list[Answer], ranks: Ranks):
    live = LiveStates(target, clips, config.states, *layers(target, config), config.drafter.visual == "states")
    if not config.states.cache:
        return live
    cached = CachedStates(pathlib.Path(config.states.folder or pathlib.Path(config.run) / "states"))
    settings: dict[str, object] = {
        "hidden_layers": live.hidden_layers,
        "visual_layer": live.visual_layer,
        "dtype": str(live.dtype),
    }
    given = {k: v for k, v in asdict(config.answers).items() if k not in (*ANSWERS, WHICH)} | {"folder": "", "batch": 0}
    settings |= {"visual_states": True} if live.visual_states else {}
    settings |= {"positions": config.states.positions, "answers": given}
    size = cached.fill(live, answers, settings | {"target": target.fingerprint(), "data": _data(config)}, ranks)
    if ranks.main:
        console.print(f"the target's states of {len(answers)} answers: {size / 2**20:.0f} MiB in {cached.folder}")
    return cached
