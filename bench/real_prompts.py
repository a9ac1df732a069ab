"""Training prompts for a drafter of SmolLM2: instructions of the training split, and clips spread among them.

python -m bench.real_prompts runs/real --text 1500 --clips 100       # writes runs/real/prompts.jsonl and the clips
"""

import argparse
import json
import pathlib

from sparrow.cli.synthetic import write_clips
from sparrow.evaluation.questions import form_of
from sparrow.files import write_text
from sparrow.miniature.world import sample
from sparrow.smollm2.prompts import prompts as instructions

CLIP_TOKENS = 64


def prompt_file(run: pathlib.Path, text: int, clips: int, skip_text: int = 0, skip_clips: int = 0) -> pathlib.Path:
    """<run>/prompts.jsonl, once: `text` instructions with `clips` descriptions of clips spread evenly among them.

    The first `skip_text` and `skip_clips` of them are left to others: an earlier training has seen them.
    """
    folder, file = run / "clips_train", run / "prompts.jsonl"
    if not file.exists():
        numbers = range(skip_clips, skip_clips + clips)
        drawn = [sample(n, form_of(CLIP_TOKENS, n), split="train", kind="describe") for n in numbers]
        write_clips(drawn, numbers, folder, CLIP_TOKENS, "train")
        lines = [{"prompt": prompt} for prompt in instructions("train", skip_text + text)[skip_text:]]
        every = text // max(1, clips)
        for i, (n, clip) in enumerate(zip(numbers, drawn, strict=True)):
            lines.insert(i * (every + 1) + every, {"video": f"{folder.name}/{n:06d}.mp4", "prompt": clip.prompt})
        write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="the folder")
    parser.add_argument("--text", type=int, default=1500, help="instructions (default 1500)")
    parser.add_argument("--clips", type=int, default=100, help="clips (default 100)")
    parser.add_argument("--skip-text", type=int, default=0, help="instructions to leave out before them (default 0)")
    parser.add_argument("--skip-clips", type=int, default=0, help="clips to leave out before them (default 0)")
    arguments = vars(parser.parse_args())
    print(prompt_file(arguments.pop("run"), **arguments))
