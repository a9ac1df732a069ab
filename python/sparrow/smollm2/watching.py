"""Does it watch? Accuracy on the words only the video can tell, with the true, a wrong and a black one."""

from typing import Any

import torch

from sparrow.miniature.watching import BATCH_TOKENS, VIDEOS, Counts, batches
from sparrow.miniature.world import Format, sample, visual_tokens
from sparrow.smollm2.words import CORE, NAMES, Tagger


def classes_of(tagger: Tagger, clips: list[Any]) -> torch.Tensor:
    """The class of every token of the clips' answers and of the ends, int64 [n], -1 = none."""
    return torch.tensor([c for clip in clips for c in [*tagger.classes(clip.answer), -1]])


@torch.no_grad()
def hits(collator: Any, forward: Any, form: Format, *, video: str, split: str, clips: int) -> Counts:
    """Right and all words of each class of words.NAMES, per clip; descriptions, teacher-forced.

    Args:
        collator, forward: of the target, as in training.
        form: frames and size of the clips.
        video: "true", "shuffled" = another clip's, "black".
        split, clips: numbers 0 .. clips - 1 of this split; at least 2.

    Raises:
        ValueError: an unknown video, or fewer than 2 clips.
    """
    if video not in VIDEOS:
        raise ValueError(f"video must be one of {', '.join(VIDEOS)}, got {video!r}")
    if clips < 2:
        raise ValueError(f"clips must be at least 2 (videos are exchanged among them), got {clips}")
    tagger, length = Tagger(collator.tokenizer), visual_tokens(form)
    counts: Counts = {name: [] for name in NAMES}
    for numbers in batches(clips, max(2, BATCH_TOKENS // (length + 200))):
        made = collator.batch([sample(i, form, split=split) for i in numbers], form, looks=False)
        if video == "shuffled":
            made.pixels = made.pixels.unflatten(0, (len(numbers), -1)).roll(1, 0).flatten(0, 1)
        if video == "black":
            made.pixels = torch.full_like(made.pixels, -1.0)
        logits, labels = forward(made)
        classes = classes_of(tagger, made.clips)
        chosen, said = (tagger.meaning(tokens, classes.clamp(min=0)) for tokens in (logits.argmax(-1), labels))
        of = (made.labels[:, 1:] >= 0).sum(1).tolist()
        for right, clip in zip((chosen == said).split(of), classes.split(of), strict=True):
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
