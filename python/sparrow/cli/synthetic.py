"""`sparrow synthetic`: clips of the synthetic world as mp4 files with prompts and answers, or a sheet to look at."""

import json
import pathlib
import textwrap

from sparrow.cli.arguments import Synthetic
from sparrow.evaluation.questions import form_of
from sparrow.files import write_figure, write_text
from sparrow.miniature.world import Clip, sample, write_video
from sparrow.progress import track

FRAMES_SHOWN = 8


def run(arguments: Synthetic) -> int:
    """Writes files, a contact sheet, or both."""
    numbers = range(arguments.first, arguments.first + arguments.count)
    clips = [
        sample(n, form_of(arguments.length, n), split=arguments.split, kind=arguments.kind)
        for n in track(numbers, "drawing", "clips")
    ]
    if arguments.out is not None:
        write_clips(clips, numbers, pathlib.Path(arguments.out), arguments.length, arguments.split)
    if arguments.sheet is not None:
        contact_sheet(clips, numbers, pathlib.Path(arguments.sheet))
    return 0


def write_clips(clips: list[Clip], numbers: range, folder: pathlib.Path, length: int, split: str) -> None:
    """NUMBER.mp4 for every clip, and one line each in clips.jsonl."""
    lines = []
    for number, clip in track(list(zip(numbers, clips, strict=True)), "writing", "clips"):
        name = f"{number:06d}.mp4"
        write_video(folder / name, clip.frames, clip.fps)
        line = {
            "video": name, "number": number, "split": split, "visual_tokens": length, "fps": clip.fps,
            "kind": clip.kind, "prompt": clip.prompt, "answer": clip.answer,
        }  # fmt: skip
        lines.append(json.dumps(line) + "\n")
    write_text(folder / "clips.jsonl", "".join(lines))
    print(f"{len(clips)} clips in {folder}")


def contact_sheet(clips: list[Clip], numbers: range, file: pathlib.Path) -> None:
    """One row per clip: frames over time, and what is said about it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(clips), FRAMES_SHOWN, figsize=(2 * FRAMES_SHOWN, 2.8 * len(clips)), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.25 / (2.8 * len(clips)), bottom=0, wspace=0.04, hspace=0.4)
    for row, number, clip in zip(axes, numbers, clips, strict=True):
        shown = [round((i + 0.5) * len(clip.frames) / FRAMES_SHOWN - 0.5) for i in range(FRAMES_SHOWN)]
        for axis, i in zip(row, shown, strict=True):
            axis.imshow(clip.frames[i], interpolation="nearest")
            axis.set_title(f"{(i + 0.5) / clip.fps:.1f} s", fontsize=8)
            axis.axis("off")
        told = textwrap.fill(f"{number}: {clip.prompt} - {clip.answer}", 190)
        row[0].text(0, -0.08, told, transform=row[0].transAxes, fontsize=9, va="top")
    write_figure(file, figure, dpi=80)
    plt.close(figure)
    print(file)
