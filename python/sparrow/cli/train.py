"""`sparrow train`: drafters, and the answers they are trained on."""

import pathlib
from contextlib import contextmanager, nullcontext

import torch

from sparrow.cli import plan
from sparrow.cli.engine_options import engine_options
from sparrow.cli.loading import load_model, load_tokenizer, pick_device, quiet
from sparrow.cli.places import target_folder
from sparrow.cli.train_arguments import TrainAnswers, TrainDrafter
from sparrow.engines.vllm_worker import Engine
from sparrow.progress import console
from sparrow.targets.adapter import Target
from sparrow.training.clips import Clips, FileClips, SyntheticClips
from sparrow.training.config import load_config
from sparrow.training.distributed import local_device, ranks
from sparrow.training.engine_answers import EngineAnswers
from sparrow.training.recipe import DrafterTraining
from sparrow.training.stages import prepare_answers, train
from sparrow.video import load_settings


def run_drafter(arguments: TrainDrafter) -> int:
    """Trains a drafter by a configuration file; under torchrun, with all processes. Goes on where a run stopped."""
    return _run(arguments, only_answers=False)


def run_answers(arguments: TrainDrafter) -> int:
    """The first stage of `sparrow train drafter` alone: the target's answers, by our decoding or by vLLM."""
    return _run(arguments, only_answers=True)


def _run(arguments: TrainDrafter, only_answers: bool) -> int:
    quiet()
    config = load_config(DrafterTraining, arguments.config, arguments.overrides)
    device = local_device(pick_device(config.device))
    with ranks(device) as here:
        folder = target_folder(config.target, "target")
        clips = clips_of(config, folder, load_tokenizer(folder, False))
        if arguments.plan:
            return plan.run(config, folder, clips, device)
        by_vllm = arguments if isinstance(arguments, TrainAnswers) and arguments.engine == "vllm" else None
        model = load_model(folder, config.dtype, torch.device("cpu") if by_vllm else device, False)
        if only_answers:
            with engine_of(by_vllm, folder, Target(model), clips, config) if by_vllm else nullcontext() as engine:
                answers = prepare_answers(Target(model), clips, config, here, engine)
            tokens = sum(len(a.ids) for a in answers)
            if here.main:
                console.print(f"{len(answers)} answers, {tokens} tokens")
            return 0
        drafter = train(Target(model), clips, config, here)
        if here.main:
            console.print(
                f"the drafter is in {drafter}; the log and the curves are in {drafter.parent}",
                markup=False,
                soft_wrap=True,
            )
    return 0


@contextmanager
def engine_of(arguments: TrainAnswers, folder: pathlib.Path, target: Target, clips: Clips, config: DrafterTraining):
    """vLLM with the target, which answers in place of our own decoding."""
    given = engine_options(arguments.engine_options)
    options = {"dtype": str(target.embedding.dtype).removeprefix("torch."), "max_num_seqs": config.answers.batch}
    tokenizer = load_tokenizer(folder, False)
    with Engine(str(folder), options | given) as engine:
        yield EngineAnswers(engine, target, tokenizer, clips, config.answers, config.states.positions)


def clips_of(config: DrafterTraining, target: pathlib.Path, tokenizer) -> Clips:
    """The clips the configuration names."""
    settings, data = load_settings(target), config.data
    if data.clips is not None:
        clips = FileClips(data.clips, settings, tokenizer, data.num_frames, data.fps)
        clips.check()  # before the target's weights are read
        return clips
    from sparrow.miniature.world import Format, sample

    def draw(number: int):
        form = Format(data.frames[number % len(data.frames)], data.side)
        return sample(number, form, split="train", kind=data.kind)

    return SyntheticClips(draw, settings, tokenizer, data.count, data.first)
