"""Does it watch? Accuracy on the words only the video can tell, with the true, a wrong and a black one."""

from typing import Any

import torch

from sparrow.miniature.watching import Counts, per_clip, said
from sparrow.miniature.world import Format
from sparrow.smollm2.words import CORE, NAMES, Tagger

# A shape's colour, kind, size and place are told once, before the description's closing names the shape again: there
# the words that went before do not give them away.
FIRST = tuple(f"first {name}" for name in CORE)


def classes_of(tagger: Tagger, clips: list[Any]) -> torch.Tensor:
    """The class of every token of the clips' answers and of the ends, int64 [n], -1 = none."""
    return torch.tensor([c for clip in clips for c in [*tagger.classes(clip.answer), -1]])


def hits(collator: Any, forward: Any, form: Format, *, video: str, split: str, clips: int) -> Counts:
    """Right and all words of each class of words.NAMES and FIRST, per clip. Arguments: see miniature.watching.said."""
    tagger = Tagger(collator.tokenizer)
    counts: Counts = {name: [] for name in (*NAMES, *FIRST)}
    for made, chosen, true in said(collator, forward, form, video=video, split=split, clips=clips):
        classes, of = classes_of(tagger, made.clips), per_clip(made)
        ours, theirs = (tagger.meaning(tokens, classes.clamp(min=0)) for tokens in (chosen, true))
        first = torch.tensor([x for clip in made.clips for x in [*tagger.first(clip.answer), False]])
        for right, clip, new in zip((ours == theirs).split(of), classes.split(of), first.split(of), strict=True):
            for number, name in enumerate(NAMES):
                counts[name].append((int(right[clip == number].sum()), int((clip == number).sum())))
                if name in CORE:
                    told = new & (clip == number)
                    counts[f"first {name}"].append((int(right[told].sum()), int(told.sum())))
    return counts


def core(counts: Counts, names: tuple[str, ...] = CORE) -> list[tuple[int, int]]:
    """Right and all words of the core classes together, per clip; names=FIRST: at their first mention only."""
    rows = zip(*(counts[name] for name in names), strict=True)
    return [(sum(a for a, _ in clip), sum(b for _, b in clip)) for clip in rows]


def share(rows: list[tuple[int, int]]) -> float:
    """Right of all, rounded to a thousandth."""
    return round(sum(a for a, _ in rows) / max(1, sum(b for _, b in rows)), 3)


def shares(counts: Counts) -> dict[str, float]:
    """Of each class, "core", and "first": the core at its first mention."""
    return {"core": share(core(counts)), "first": share(core(counts, FIRST)),
            **{name: share(rows) for name, rows in counts.items()}}  # fmt: skip
