"""The arguments of `sparrow chat`."""

import math
from dataclasses import dataclass

from sparrow.cli.arguments import Command
from sparrow.cli.options import check_seed, check_temperature, option, positive, shape_or_auto
from sparrow.tree import PRESETS, TreeConfig


@dataclass(frozen=True, kw_only=True)
class Chat(Command):
    """A conversation about videos and images: a question runs its own tokens only, every answer is the target's own.

    Questions are lines of stdin; /help lists the commands. Answers stream to stdout, figures go to stderr. Ctrl-C ends
    an answer, which stays; a second one takes the question back.
    """

    RUN = "sparrow.cli.chat:run"
    ABOUT = "a conversation about videos and images"
    EXAMPLE = "sparrow chat --target path/to/Qwen2.5-VL-7B-Instruct --drafter path/to/drafter --video clip.mp4"

    target: str | None = option(
        "folder or hub id of a video LLM (default: the shipped miniature, with its drafter)", default=None,
        metavar="FOLDER|ID",
    )  # fmt: skip
    drafter: str | None = option(
        "folder or hub id of a drafter made for it, or specvlm (default: plain decoding)", default=None,
        metavar="FOLDER|ID",
    )  # fmt: skip
    video: tuple[str, ...] = option(
        "before the first question; may be repeated", default=(), action="append", metavar="FILE"
    )
    image: tuple[str, ...] = option(
        "goes with the first question; may be repeated", default=(), action="append", metavar="FILE"
    )
    load: str | None = option("go on with a conversation that /save wrote", default=None, metavar="FILE")
    system: str | None = option("the system prompt (default: the chat template's)", default=None, metavar="TEXT")
    num_frames: int | None = option("frames to sample (default: the model's rule)", default=None, type=positive)
    fps: float | None = option("frames per second to sample", default=None, type=float)
    max_new_tokens: int = option("longest answer (default: %(default)s)", default=512, type=positive)
    tree: TreeConfig | str | None = option(  # noqa: RUF009
        f"total-depth-width, such as {', '.join(PRESETS)}; auto (default: the drafter's)", default=None,
        type=shape_or_auto,
    )  # fmt: skip
    temperature: float = option("0 = greedy (the default)", default=0.0, type=float)
    top_k: int = option("0 = off (the default)", default=0, type=int)
    top_p: float = option("1 = off (the default)", default=1.0, type=float)
    repetition_penalty: float | None = option("default: the model's generation config", default=None, type=float)
    seed: int = option("of the sampling noise (default: %(default)s)", default=0, type=int)
    dtype: str = option(
        "default: the checkpoint's own", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    device: str | None = option("cpu, cuda, cuda:1 (default: cuda where kernels and GPU are there)", default=None)
    trust_remote_code: bool = option("run code that comes with the model", default=False, action="store_true")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_seed(self.seed)
        if self.temperature == 0 and (self.top_k, self.top_p) != (0, 1.0):
            raise ValueError("--top-k and --top-p need --temperature above 0: greedy decoding draws nothing")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"--fps must be positive and finite, got {self.fps}")
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("--fps and --num-frames exclude each other: one says how often, the other how many")
        if self.target is None and self.drafter is not None:
            raise ValueError("--drafter needs --target: the shipped miniature comes with its own")
        if self.load is not None and self.system is not None:
            raise ValueError("--system cannot go with --load: the conversation that is loaded has its own")
