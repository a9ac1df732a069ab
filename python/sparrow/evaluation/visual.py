"""Does the target watch, at every visual length, and in which layers does it take the video in?

Both are teacher-forced accuracies on held-out descriptions, by class of word, with intervals over clips.
"""

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparrow.evaluation.questions import form_of
from sparrow.evaluation.statistics import interval, quotient
from sparrow.synthetic import sample
from sparrow.training.watching import word_ids

VIDEOS = ("true", "shuffled", "black")
BATCH_TOKENS = 8192
Counts = dict[str, list[tuple[int, int]]]


@torch.no_grad()
def hits(collator: Any, forward: Any, length: int, *, video: str, split: str, clips: int) -> Counts:
    """Right and all words of each class, per clip.

    Args:
        collator, forward: of the target, as in training.
        length: visual tokens; clips that share the first format of this length.
        video: "true", "shuffled" = another clip's, "black".
        split, clips: numbers 0 .. clips - 1 of this split; at least 2.

    Raises:
        ValueError: an unknown video, or fewer than 2 clips.
    """
    if video not in VIDEOS:
        raise ValueError(f"video must be one of {', '.join(VIDEOS)}, got {video!r}")
    if clips < 2:
        raise ValueError(f"clips must be at least 2 (videos are exchanged among them), got {clips}")
    form, classes = form_of(length, 0), word_ids(collator.tokenizer)
    counts: Counts = {name: [] for name in classes}
    for numbers in batches(clips, max(2, BATCH_TOKENS // (length + 200))):
        made = collator.batch([sample(i, form, split=split) for i in numbers], form, looks=False)
        if video == "shuffled":
            made.pixels = made.pixels.unflatten(0, (len(numbers), -1)).roll(1, 0).flatten(0, 1)
        if video == "black":
            made.pixels = torch.full_like(made.pixels, -1.0)
        logits, labels = forward(made)
        right = logits.argmax(-1) == labels
        of = (made.labels[:, 1:] >= 0).sum(1).tolist()
        for ours, theirs in zip(right.split(of), labels.split(of), strict=True):
            for name, ids in classes.items():
                counts[name].append(_count(ours, torch.isin(theirs, ids)))
    return counts


def _count(right: Tensor, wanted: Tensor) -> tuple[int, int]:
    return int(right[wanted].sum()), int(wanted.sum())


def batches(clips: int, most: int) -> list[range]:
    """0 .. clips - 1 in runs of at most `most` or, at the end, one more: never a single clip."""
    starts = list(range(0, clips, most))
    if clips - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    return [range(a, b) for a, b in zip(starts, [*starts[1:], clips], strict=True)]


def shares(counts: Counts) -> dict[str, dict[str, float | None]]:
    """The share right of each class and of all classes, with its interval."""
    clips = list(zip(*counts.values(), strict=True))
    everything = [(sum(right for right, _ in clip), sum(of for _, of in clip)) for clip in clips]
    return {name: interval(rows, quotient) for name, rows in [*counts.items(), ("all", everything)]}


def watching(
    collator: Any, forward: Any, lengths: Sequence[int], split: str, clips: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Per visual length and video, the shares right: the target watches where "true" is far above the others."""
    rows = []
    for length in lengths:
        for video in VIDEOS:
            progress(f"{length} visual tokens, {video} video")
            counts = hits(collator, forward, length, video=video, split=split, clips=clips)
            rows.append({"length": length, "video": video, "accuracy": shares(counts)})
    return rows


def layer_cuts(
    collator: Any, forward: Any, cut: Callable[[int], contextlib.AbstractContextManager], layers: int, length: int,
    split: str, clips: int, progress: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Shares right with text cut off from the video from layer x on, x = 0 .. layers (= uncut).

    After the layers in which text rows have taken the video in, cutting costs nothing: what Sparrow (arXiv 2602.15318)
    calls the internalisation of visual information, and why a drafter may see text rows only.

    Args:
        cut: targets.layer_cut.layer_cut of the target; the others as in `hits`.
    """
    rows = []
    for first in range(layers + 1):
        progress(f"text sees no video from layer {first} on")
        with cut(first):
            counts = hits(collator, forward, length, video="true", split=split, clips=clips)
        rows.append({"first": first, "accuracy": shares(counts)})
    return rows


def watching_table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one row per visual length and video."""
    names = list(rows[0]["accuracy"])
    lines = ["| visual tokens | video | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        figures = " | ".join(_share(row["accuracy"][name]) for name in names)
        lines.append(f"| {row['length']} | {row['video']} | {figures} |")
    return "\n".join(lines) + "\n"


def layer_table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one row per layer."""
    names = list(rows[0]["accuracy"])
    lines = ["| no video from layer | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['first']} | " + " | ".join(_share(row["accuracy"][name]) for name in names) + " |")
    return "\n".join(lines) + "\n"


def _share(value: dict[str, float | None]) -> str:
    if value["value"] is None or value["low"] is None or value["high"] is None:
        return "-"
    return f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"


def layer_plot(rows: list[dict[str, Any]], file: pathlib.Path) -> None:
    """Accuracy by class over the first layer without video."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    x = [row["first"] for row in rows]
    for name in rows[0]["accuracy"]:
        points = [row["accuracy"][name] for row in rows]
        if any(p["value"] is None for p in points):
            continue
        style: dict[str, Any] = {"color": "black", "lw": 2.5} if name == "all" else {"lw": 1.3}
        (line,) = axis.plot(x, [p["value"] for p in points], marker="o", ms=4, label=name, **style)
        low, high = ([p[side] for p in points] for side in ("low", "high"))
        axis.fill_between(x, low, high, color=line.get_color(), alpha=0.1, lw=0)
    axis.set_xlabel(f"first layer in which text rows cannot see visual tokens ({x[-1]} = uncut)")
    axis.set_ylabel("accuracy, teacher-forced")
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
