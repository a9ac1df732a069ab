"""The arguments of `sparrow train`, one frozen dataclass per command; see arguments.py."""

from dataclasses import dataclass
from typing import ClassVar

from sparrow.cli.arguments import Command
from sparrow.cli.options import option


@dataclass(frozen=True, kw_only=True)
class TrainDrafter(Command):
    """Trains a drafter for a target: its answers, its states along them, then the training. Each stage goes on where it
    was stopped; under torchrun, on all processes. The drafter is in <run>/drafter.
    """

    RUN = "sparrow.cli.train:run_drafter"
    ABOUT = "answers, states and training of a drafter"
    EXAMPLE = """sparrow train drafter --config sparrow target=FOLDER \\
      data.clips=clips.jsonl run=runs/mine"""
    SETTINGS: ClassVar[str] = "sparrow.training.recipe:DrafterTraining"

    config: str | None = option(
        "a recipe of the package (sparrow, paper, qwen2_5_vl_7b, llava_onevision_7b) or a YAML file (default: the "
        "paper's recipe)", default=None, metavar="NAME|FILE",
    )  # fmt: skip
    overrides: tuple[str, ...] = option(
        "settings that replace the file's", default=(), positional=True, nargs="*", metavar="a.b=c"
    )
    plan: bool = option(
        "only print what each stage will take: memory, disk, tokens, hours by a measured step; exit code 1 where "
        "something does not fit", default=False, action="store_true",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainAnswers(TrainDrafter):
    """Writes the target's answers to <run>/answers: the first stage of `sparrow train drafter` alone."""

    RUN = "sparrow.cli.train:run_answers"
    ABOUT = "the target's answers only, the first stage of `train drafter`"
    EXAMPLE = "sparrow train answers target=FOLDER data.clips=clips.jsonl run=runs/mine"

    engine: str = option(
        "vllm: answers.batch answers at a time, as one ends the next one starts (docs/engines.md); default: own",
        default="own", choices=["own", "vllm"],
    )  # fmt: skip
    engine_options: str = option(
        "arguments of vLLM's LLM beside it, JSON", default="{}", metavar="JSON"
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainTarget(Command):
    """Trains the miniature target from nothing, on clips of the synthetic world; about an hour on one core. It goes on
    where it was stopped.
    """

    RUN = "sparrow.cli.train_target:run"
    ABOUT = "the miniature target from nothing, on synthetic clips"
    EXAMPLE = "sparrow train target --out runs/target"
    SETTINGS: ClassVar[str] = "sparrow.miniature.recipe:TargetRecipe"

    out: str = option("of the run; FOLDER/target is the result", required=True, metavar="FOLDER")
    config: str | None = option("YAML settings (default: those of the shipped target)", default=None, metavar="FILE")
    overrides: tuple[str, ...] = option(
        "settings that replace the file's", default=(), positional=True, nargs="*", metavar="a=b"
    )


@dataclass(frozen=True, kw_only=True)
class TrainSmolLM2(Command):
    """Teaches SmolLM2, a pretrained language model from PyPI, to watch clips of the synthetic world: tower, merger and
    LoRA, the text model frozen. It goes on where it was stopped.
    """

    RUN = "sparrow.cli.train_smollm2:run"
    ABOUT = "SmolLM2 learns to watch, on synthetic clips"
    EXAMPLE = "sparrow train smollm2 --out runs/smollm2"
    SETTINGS: ClassVar[str] = "sparrow.smollm2.recipe:SmolRecipe"

    out: str = option("of the run; FOLDER/taught.safetensors is the result", required=True, metavar="FOLDER")
    config: str | None = option("YAML settings (default: the recipe's)", default=None, metavar="FILE")
    overrides: tuple[str, ...] = option(
        "settings that replace the file's", default=(), positional=True, nargs="*", metavar="a=b"
    )
