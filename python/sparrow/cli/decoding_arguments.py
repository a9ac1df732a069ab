"""The arguments of `sparrow generate` and `sparrow chat`; nothing heavy is imported (see arguments.py)."""

import math
from dataclasses import dataclass

from sparrow.cli.arguments import Command
from sparrow.cli.options import (
    MAX_FLOAT32,
    MAX_INT32,
    check_seed,
    check_temperature,
    option,
    positive,
    shape_or_word,
)
from sparrow.tree import PRESETS, TreeConfig


@dataclass(frozen=True, kw_only=True)
class Decoding(Command):
    """What commands that answer prompts have in common."""

    num_frames: int | None = option("frames to sample (default: the model's rule)", default=None, type=positive)
    fps: float | None = option("frames per second to sample", default=None, type=float)
    tree: TreeConfig | str | None = option(  # noqa: RUF009
        f"total-depth-width, such as {', '.join(PRESETS)}; own: the drafter's; auto: chosen while decoding (default: "
        "auto on a CPU, own on a GPU)", default=None, type=shape_or_word,
    )  # fmt: skip
    temperature: float = option("0 = greedy (the default)", default=0.0, type=float)
    top_k: int = option("0 = off (the default)", default=0, type=int)
    top_p: float = option("1 = off (the default)", default=1.0, type=float)
    repetition_penalty: float | None = option("default: the model's generation config", default=None, type=float)
    prefill_chunk: int | None = option(
        "tokens of the prompt that are run at a time: same output, less memory (default: all)", default=None,
        type=positive,
    )  # fmt: skip
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
        if not 0 <= self.top_k <= MAX_INT32:
            bound = "at least 0 (0 = off)" if self.top_k < 0 else f"at most {MAX_INT32}"
            raise ValueError(f"--top-k must be {bound}, got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"--top-p must lie in [0, 1], got {self.top_p}")
        penalty = self.repetition_penalty
        if penalty is not None and not 1 / MAX_FLOAT32 <= penalty <= MAX_FLOAT32:
            least, most = f"{1 / MAX_FLOAT32:g}", f"{MAX_FLOAT32:g}"
            raise ValueError(f"--repetition-penalty must lie in [{least}, {most}] (1 = off), got {penalty}")
        if self.temperature == 0 and (self.top_k, self.top_p) != (0, 1.0):
            raise ValueError("--top-k and --top-p need --temperature above 0: greedy decoding draws nothing")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"--fps must be positive and finite, got {self.fps}")
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("--fps and --num-frames exclude each other: one says how often, the other how many")

    def _check_tree(self, drafter: str | None) -> None:
        if self.tree is not None and drafter in (None, "specvlm"):
            raise ValueError(
                "--tree needs --drafter FOLDER: plain decoding drafts nothing, and specvlm's tree is its own"
            )


@dataclass(frozen=True, kw_only=True)
class Generate(Decoding):
    """Answers a prompt about videos and images. The answer streams to stdout; progress and figures go to stderr.

    The output is the target's own, token for token, with any drafter and without one, unless --visual-drop-layer is
    given.
    """

    RUN = "sparrow.cli.generate:run"
    ABOUT = "answer a prompt about videos and images"
    EXAMPLE = """sparrow generate --target path/to/Qwen2.5-VL-7B-Instruct --drafter path/to/drafter \\
      --video clip.mp4 --prompt "What happens?" --compare"""

    target: str = option("folder or hub id of a video LLM (safetensors)", required=True, metavar="FOLDER|ID")
    drafter: str | None = option(
        "folder or hub id of a drafter made for it (a public one is imported, see sparrow import), or specvlm: the "
        "target itself with a tenth of the visual tokens; default: plain decoding", default=None, metavar="FOLDER|ID",
    )  # fmt: skip
    video: tuple[str, ...] = option(
        "mp4, mkv, avi, webm, folder of frames, .npy or .npz; may be repeated",
        default=(), action="append", metavar="FILE",
    )  # fmt: skip
    image: tuple[str, ...] = option(
        "png, jpeg, webp, ...; may be repeated; images come before the videos in the prompt",
        default=(), action="append", metavar="FILE",
    )  # fmt: skip
    prompt: str = option("the question", required=True, metavar="TEXT")
    on_damage: str = option(
        "skip: sample the whole frames of a damaged video; what was left out is printed (default: raise)",
        default="raise", choices=["raise", "skip"],
    )  # fmt: skip
    max_new_tokens: int = option("longest answer (default: %(default)s)", default=256, type=positive)
    positions: str = option(
        "how the prompt is numbered: as in transformers (default), or as Qwen2-VL and Qwen2.5-VL were trained",
        default="hf", choices=["hf", "reference"],
    )  # fmt: skip
    visual_drop_layer: int | None = option(
        "LOSSY: from this layer on visual tokens are neither run nor kept; the output is no longer the target's own "
        "(default: off)", default=None, type=positive, metavar="LAYER",
    )  # fmt: skip
    compare: bool = option(
        "also decode with transformers and without a drafter, in turns; print the speed-ups, and whether all outputs "
        "are the same (exit code 1 if not)", default=False, action="store_true",
    )  # fmt: skip
    json: str | None = option("write the statistics there", default=None, metavar="FILE")
    report: str | None = option(
        "write one self-contained page: clip, text by round, draft trees, the race (with --compare: of all three)",
        default=None, metavar="FILE.html",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.compare and self.temperature > 0:
            raise ValueError("--compare is for greedy decoding: transformers samples with noise of its own")
        if self.compare and self.visual_drop_layer is not None:
            raise ValueError("--compare checks that nothing is lost, --visual-drop-layer is lossy: leave one out")
        super().__post_init__()
        self._check_tree(self.drafter)
        if not self.prompt.strip():
            raise ValueError("--prompt must not be empty")


@dataclass(frozen=True, kw_only=True)
class Chat(Decoding):
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
    max_new_tokens: int = option("longest answer (default: %(default)s)", default=512, type=positive)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is None and self.drafter is not None:
            raise ValueError("--drafter needs --target: the shipped miniature comes with its own")
        self._check_tree("its own" if self.target is None else self.drafter)
        if self.load is not None and self.system is not None:
            raise ValueError("--system cannot go with --load: the conversation that is loaded has its own")
