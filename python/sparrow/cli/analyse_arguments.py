"""The arguments of `sparrow analyse`; nothing heavy is imported (see arguments.py)."""

from dataclasses import dataclass

from sparrow.cli.arguments import Command
from sparrow.cli.options import option, positive


@dataclass(frozen=True, kw_only=True)
class Analyse(Command):
    """Looks into a target's layers while it answers: from which layer on its text rows predict what the last one does,
    how far they are from the input, how much they look at the video, and what is lost without it from a layer on.

    One row per layer in hidden.json, hidden.md and hidden.png in --out (docs/analysis.md).
    """

    RUN = "sparrow.cli.analyse:run"
    ABOUT = "what each layer of a target does with the video"
    EXAMPLE = """sparrow analyse --target path/to/Qwen2.5-VL-7B-Instruct \\
      --video clip.mp4 --prompt "What happens?" --out layers"""

    target: str | None = option(
        "folder or hub id of a video LLM (default: the shipped miniature)", default=None, metavar="FOLDER|ID"
    )
    video: tuple[str, ...] = option(
        "may be repeated: the prompt is asked about each (default: clips of the synthetic world)",
        default=(), action="append", metavar="FILE",
    )  # fmt: skip
    prompt: str | None = option("the question about each --video", default=None, metavar="TEXT")
    num_frames: int | None = option("frames to sample (default: the model's rule)", default=None, type=positive)
    clips: int = option("of the synthetic world, without --video (default: %(default)s)", default=8, type=positive)
    length: int = option("their visual tokens (default: %(default)s)", default=256, type=positive)
    max_new_tokens: int = option("longest answer (default: %(default)s)", default=128, type=positive)
    dtype: str = option("default: %(default)s", default="float32", choices=["auto", "float32", "bfloat16", "float16"])
    device: str | None = option("cpu, cuda, cuda:1 (default: cuda where kernels and GPU are there)", default=None)
    out: str = option("default: %(default)s", default="sparrow_analysis", metavar="FOLDER")
    trust_remote_code: bool = option("run code that comes with the model", default=False, action="store_true")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.video) != bool(self.prompt and self.prompt.strip()):
            raise ValueError("--video and --prompt belong together: the prompt is asked about each video")
