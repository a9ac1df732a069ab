"""`sparrow eval --engine vllm`: a pair inside vLLM under load, beside vLLM without a drafter."""

import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

from sparrow.cli.arguments import Eval
from sparrow.cli.engine_options import engine_options
from sparrow.cli.loading import load_drafter, quiet
from sparrow.cli.tables import print_markdown
from sparrow.decoding.generate import generate
from sparrow.engines.vllm_worker import version
from sparrow.evaluation.questions import Question, question
from sparrow.evaluation.serving import Load, measure, prompts_of, table
from sparrow.files import lock, write_json
from sparrow.miniature.shipped import drafter_folder
from sparrow.progress import Progress, console
from sparrow.provenance import provenance
from sparrow.video import PatchSettings

LENGTHS, CLIPS = (128, 256, 512), 16
OF_TABLES = (
    "table", "quick", "tree", "systems", "temperature", "num_frames", "fps", "live", "live_others", "timed", "tapes",
    "render",
)  # fmt: skip
NUMBERINGS = ("hf", "reference")


def run(arguments: Eval, target: pathlib.Path, load_it: Callable[[Eval], tuple[PatchSettings, Any, Any]]) -> int:
    """Writes serving.json into --out and prints its table. Exit code 1 where an answer is not vLLM's own.

    Args:
        target: its folder.
        load_it: gives its settings, model and tokenizer.
    """
    given = engine_options(arguments.engine_options)
    given_too = {name: getattr(arguments, name) for name in OF_TABLES}
    if refused := [name for name, value in given_too.items() if not any(value is x for x in (None, (), False))]:
        raise ValueError(f"--engine takes no --{refused[0].replace('_', '-')}: it measures one pair under load")
    if isinstance(arguments.clips, str):
        raise ValueError(f"--clips must be a number with --engine, got {arguments.clips!r}")
    if len(arguments.drafter) > 1:
        raise ValueError(f"--drafter: with --engine it must be one folder, got {len(arguments.drafter)}")
    drafter = drafter_folder(arguments.drafter[0] if arguments.drafter else "shipped_reference")
    quiet()
    made = provenance("sparrow " + shlex.join(sys.argv[1:]))
    file = pathlib.Path(arguments.out) / "serving.json"
    settings, model, tokenizer = load_it(arguments)
    lengths = arguments.lengths or LENGTHS
    questions = [
        question(settings, tokenizer, lengths[i % len(lengths)], i, split=arguments.split)
        for i in range(arguments.clips or CLIPS)
    ]
    load = Load(rounds=arguments.runs or Load.rounds, max_new_tokens=arguments.max_new_tokens)
    options = {"dtype": arguments.dtype} | given
    with lock(file), Progress("serving", 1, "passes") as progress:
        own = own_loop(model, load_drafter(str(drafter), model), questions, load)
        tell = lambda text: progress.update(text=f"serving: {text}")  # noqa: E731
        result = measure(
            str(target.resolve()), str(drafter.resolve()), prompts_of(tokenizer, questions), load, options, tell
        )
        same = {
            name: sum(a == list(b) for a, b in zip(of.pop("answers"), result["answers"], strict=True))
            for name, of in own.items()
        }
        del result["answers"]
        about = {"questions": len(questions), "visual_tokens": list(lengths), "split": arguments.split}
        result |= {
            "provenance": made | {"vllm": version()},
            "options": options,
            "asked": about,
            "own_loop": {name: of | {"answers_as_vllm": same[name]} for name, of in own.items()},
        }
        write_json(file, result)
    print_markdown(table(result))
    for name, of in own.items():
        console.print(f"own loop, positions={name}: {of['accepted_length']:.2f} tokens per step", markup=False)
    console.print(
        f"identical to vLLM without a drafter: {'yes' if result['identical'] else 'NO'}; {file}", markup=False
    )
    return 0 if result["identical"] else 1


def own_loop(model: Any, drafter: Any, questions: list[Question], load: Load) -> dict[str, dict[str, Any]]:
    """Accepted lengths of sparrow.generate with the same chain, under either numbering."""
    found = {}
    for name in NUMBERINGS:
        emitted: list[int] = []
        answers: list[list[int]] = []
        for one in questions:
            tree = f"{load.length}-{load.length}-1"
            options: dict[str, Any] = {
                "do_sample": False,
                "max_new_tokens": load.max_new_tokens,
                "tree": tree,
                "positions": name,
            }
            out = generate(model, drafter, **(options | one.inputs))
            emitted += out.stats.emitted
            answers.append(out.sequences[0, one.inputs["input_ids"].shape[1] :].tolist())
        found[name] = {"accepted_length": sum(emitted) / len(emitted), "steps": len(emitted), "answers": answers}
    return found
