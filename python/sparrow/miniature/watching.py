"""Does the target watch? Accuracy on the words only the video can tell, with the true, a wrong and a black one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparrow.miniature.batches import Batch
from sparrow.miniature.world import Format, sample, visual_tokens
from sparrow.miniature.world.language import BIG, COUNTS, PLACES, VERBS
from sparrow.miniature.world.scene import COLOURS, KINDS

# Class -> its meanings, each a tuple of words that say the same.
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "colour": tuple((word,) for word in COLOURS),
    "kind": tuple((word,) for word in KINDS),
    "size": tuple(BIG.values()),
    "count": tuple((word,) for word in COUNTS),
    "place": (("upper",), ("lower",), ("top",), ("bottom",), ("left",), ("right",), ("center", "middle")),
    "speed": tuple((adverb, *verbs) for adverb, verbs in VERBS.items()),
    "second": tuple((digit,) for digit in "0123456789"),
}
assert len(PLACES) == 9
FORM = Format(16, 64)
VIDEOS = ("true", "shuffled", "black")
BATCH_TOKENS = 8192
Counts = dict[str, list[tuple[int, int]]]


def meanings(tokenizer: Any) -> dict[str, Tensor]:
    """For each class a table over the vocabulary, int64 [V]: the number of a token's meaning, -1 = not of the class."""
    tables = {}
    for name, groups in WORDS.items():
        table = torch.full((len(tokenizer),), -1)
        for number, words in enumerate(groups):
            for word in words:
                table[tokenizer(word if word.isdigit() else " " + word)["input_ids"][-1]] = number
        tables[name] = table
    return tables


@torch.no_grad()
def said(
    collator: Any, forward: Any, form: Format, *, video: str, split: str, clips: int
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Descriptions, teacher-forced, batch by batch: the batch, and the chosen and the true words of its answers, [n].

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
    length = visual_tokens(form)
    for numbers in batches(clips, max(2, BATCH_TOKENS // (length + 200))):
        made = collator.batch([sample(i, form, split=split) for i in numbers], form, looks=False)
        if video == "shuffled":
            made.pixels = made.pixels.unflatten(0, (len(numbers), -1)).roll(1, 0).flatten(0, 1)
        if video == "black":
            made.pixels = torch.full_like(made.pixels, -1.0)
        logits, labels = forward(made)
        yield made, logits.argmax(-1), labels


def per_clip(made: Batch) -> list[int]:
    """How many words each clip's answer has."""
    return (made.labels[:, 1:] >= 0).sum(1).tolist()


def hits(collator: Any, forward: Any, form: Format, *, video: str, split: str, clips: int) -> Counts:
    """Right and all words of each class, per clip. A word is right if it means the same. Arguments: see `said`."""
    tables = meanings(collator.tokenizer)
    counts: Counts = {name: [] for name in tables}
    for made, chosen, true in said(collator, forward, form, video=video, split=split, clips=clips):
        of = per_clip(made)
        for ours, theirs in zip(chosen.split(of), true.split(of), strict=True):
            for name, table in tables.items():
                asked = table[theirs] >= 0
                counts[name].append((int((table[ours] == table[theirs])[asked].sum()), int(asked.sum())))
    return counts


def batches(clips: int, most: int) -> list[range]:
    """0 .. clips - 1 in runs of at most `most` or, at the end, one more: never a single clip."""
    starts = list(range(0, clips, most))
    if clips - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    return [range(a, b) for a, b in zip(starts, [*starts[1:], clips], strict=True)]


def watch(collator: Any, forward: Any, form: Format = FORM, clips: int = 32) -> dict[str, dict[str, float]]:
    """Share of words right, {"true" | "shuffled" | "black": {class: share}}, on descriptions of the split "dev"."""
    model = collator.model
    training = model.training
    model.eval()
    shares = {}
    for video in VIDEOS:
        counts = hits(collator, forward, form, video=video, split="dev", clips=clips)
        shares[video] = {
            name: round(sum(a for a, _ in rows) / max(1, sum(b for _, b in rows)), 3) for name, rows in counts.items()
        }
    model.train(training)
    return shares
