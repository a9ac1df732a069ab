"""Does it watch? Accuracy on the words only the video can tell, with the true, a wrong and a black one."""

from typing import Any

import torch

from sparrow.miniature.watching import Counts, per_clip, said
from sparrow.miniature.world import Format
from sparrow.smollm2.words import CORE, NAMES, Tagger


def classes_of(tagger: Tagger, clips: list[Any]) -> torch.Tensor:
    """The class of every token of the clips' answers and of the ends, int64 [n], -1 = none."""
    return torch.tensor([c for clip in clips for c in [*tagger.classes(clip.answer), -1]])


def hits(collator: Any, forward: Any, form: Format, *, video: str, split: str, clips: int) -> Counts:
    """Right and all words of each class of words.NAMES, per clip. Arguments: see miniature.watching.said."""
    tagger = Tagger(collator.tokenizer)
    counts: Counts = {name: [] for name in NAMES}
    for made, chosen, true in said(collator, forward, form, video=video, split=split, clips=clips):
        classes, of = classes_of(tagger, made.clips), per_clip(made)
        ours, theirs = (tagger.meaning(tokens, classes.clamp(min=0)) for tokens in (chosen, true))
        for right, clip in zip((ours == theirs).split(of), classes.split(of), strict=True):
            for number, name in enumerate(NAMES):
                counts[name].append((int(right[clip == number].sum()), int((clip == number).sum())))
    return counts


def core(counts: Counts) -> list[tuple[int, int]]:
    """Right and all words of the core classes together, per clip."""
    return [(sum(a for a, _ in clip), sum(b for _, b in clip)) for clip in zip(*(counts[n] for n in CORE), strict=True)]


def share(rows: list[tuple[int, int]]) -> float:
    """Right of all, rounded to a thousandth."""
    return round(sum(a for a, _ in rows) / max(1, sum(b for _, b in rows)), 3)


def shares(counts: Counts) -> dict[str, float]:
    """Of each class, and "core"."""
    return {"core": share(core(counts)), **{name: share(rows) for name, rows in counts.items()}}
