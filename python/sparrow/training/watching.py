"""Does the target watch? Accuracy on the words only the video can tell, with the true, a wrong and a black one."""

import torch
from torch import Tensor

from sparrow.synthetic import Format, sample
from sparrow.synthetic.language import COUNTS, PLACES, VERBS
from sparrow.synthetic.world import COLOURS, KINDS, SIZES

WORDS = {
    "colour": tuple(COLOURS),
    "kind": KINDS,
    "size": ("small", "tiny", "large", "big"),
    "count": COUNTS,
    "place": ("upper", "lower", "top", "bottom", "left", "right", "center", "middle"),
    "speed": ("slowly", "quickly", *(verb for verbs in VERBS.values() for verb in verbs)),
    "second": tuple("0123456789"),
}
FORM = Format(16, 64)
assert set(SIZES) <= set(WORDS["size"]) and len(PLACES) == 9


def word_ids(tokenizer) -> dict[str, Tensor]:
    """The last token of each word, by class."""
    return {
        name: torch.tensor(sorted({tokenizer((" " if not w.isdigit() else "") + w)["input_ids"][-1] for w in words}))
        for name, words in WORDS.items()
    }


@torch.no_grad()
def watch(model, collator, forward, form: Format = FORM, clips: int = 32, batch: int = 16) -> dict:
    """Teacher-forced accuracy by class of word on held-out descriptions.

    Args:
        model, collator, forward: as in training.
        form: frames and size of the clips.
        clips: how many; batch: at once.

    Returns:
        {"true": {class: share right}, "shuffled": with the next clip's video, "black": with black frames}.
    """
    training = model.training
    model.eval()
    classes = word_ids(collator.tokenizer)
    right = {video: {name: [0, 0] for name in classes} for video in ("true", "shuffled", "black")}
    for start in range(0, clips, batch):
        rows = [sample(i, form, split="dev") for i in range(start, start + batch)]
        made = collator.batch(rows, form, looks=False)
        pixels = made.pixels
        for video, count in right.items():
            if video == "shuffled":
                made.pixels = pixels.unflatten(0, (batch, -1)).roll(1, 0).flatten(0, 1)
            if video == "black":
                made.pixels = torch.full_like(pixels, -1.0)
            logits, labels = forward(made)
            hit = logits.argmax(-1) == labels
            for name, ids in classes.items():
                at = torch.isin(labels, ids)
                count[name][0] += int(hit[at].sum())
                count[name][1] += int(at.sum())
    model.train(training)
    return {v: {name: round(a / max(1, b), 3) for name, (a, b) in count.items()} for v, count in right.items()}
