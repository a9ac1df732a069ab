"""Training prompts for a drafter of SmolLM2: instructions of the training split, and clips spread among them.

python -m bench.real_prompts runs/real --text 2800 --clips 200       # writes runs/real/prompts.jsonl and the clips
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


def prompt_file(run: pathlib.Path, text: int, clips: int) -> pathlib.Path:
    """<run>/prompts.jsonl, once: `text` instructions with `clips` descriptions of clips spread evenly among them."""
    folder, file = run / "clips_train", run / "prompts.jsonl"
    if not file.exists():
        drawn = [sample(n, form_of(CLIP_TOKENS, n), split="train", kind="describe") for n in range(clips)]
        write_clips(drawn, range(clips), folder, CLIP_TOKENS, "train")
        lines = [{"prompt": prompt} for prompt in instructions("train", text)]
        every = text // max(1, clips)
        for n, clip in enumerate(drawn):
            lines.insert(n * (every + 1) + every, {"video": f"{folder.name}/{n:06d}.mp4", "prompt": clip.prompt})
        write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="the folder")
    parser.add_argument("--text", type=int, default=2800, help="instructions (default 2800)")
    parser.add_argument("--clips", type=int, default=200, help="clips (default 200)")
    arguments = parser.parse_args()
    print(prompt_file(arguments.run, arguments.text, arguments.clips))
