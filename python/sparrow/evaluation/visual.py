"""Does the target watch, at every visual length, and in which layers does it take the video in?

Both are teacher-forced accuracies on held-out descriptions, by class of word, with intervals over clips.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from sparrow.evaluation.cells import interval, quotient
from sparrow.evaluation.questions import form_of
from sparrow.miniature.watching import VIDEOS, Counts, hits


def shares(counts: Counts) -> dict[str, dict[str, Any]]:
    """The share right of each class and of all classes, with its interval and the number of words."""
    clips = list(zip(*counts.values(), strict=True))
    everything = [(sum(right for right, _ in clip), sum(of for _, of in clip)) for clip in clips]
    named = [*counts.items(), ("all", everything)]
    return {name: {**interval(rows, quotient), "words": sum(of for _, of in rows)} for name, rows in named}


def watching(
    collator: Any, forward: Any, lengths: Sequence[int], split: str, clips: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Per visual length and video, the shares right: the target watches where "true" is far above the others."""
    rows = []
    for length in lengths:
        for video in VIDEOS:
            progress(f"{length} visual tokens, {video} video")
            counts = hits(collator, forward, form_of(length, 0), video=video, split=split, clips=clips)
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
        cut: miniature.layer_cut.layer_cut of the target; the others as in `hits`.
    """
    rows = []
    for first in range(layers + 1):
        progress(f"text sees no video from layer {first} on")
        with cut(first):
            counts = hits(collator, forward, form_of(length, 0), video="true", split=split, clips=clips)
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


def _share(value: dict[str, Any]) -> str:
    if value["value"] is None or value["low"] is None or value["high"] is None:
        return "-"
    return f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"
