"""Lessons in watching: descriptions, many without their closing, and a reader of states at visual tokens."""

import random
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sparrow.miniature.batches import STORY, Batch, Collator
from sparrow.miniature.training import dense_loss_of
from sparrow.miniature.world import Clip, Format
from sparrow.smollm2.words import closing

CUT = "cut"  # kind of a clip whose answer goes on, in truth, behind its end


class Lessons(Collator):
    """A collator that leaves out the closing of some descriptions: their tokens go to shapes not yet named.

    Args:
        share: of the descriptions; which, depends on their text alone. The others: see Collator.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: Any, share: float):
        super().__init__(model, tokenizer, settings)
        self.share = share

    def batch(self, clips: list[Clip], form: Format, looks: bool = True) -> Batch:
        """See Collator.batch; its clips' answers are those that are in the batch."""
        return super().batch([self._cut(clip) for clip in clips], form, looks)

    def _cut(self, clip: Clip) -> Clip:
        if clip.kind != "describe" or random.Random(clip.answer).random() >= self.share:
            return clip
        return replace(clip, kind=CUT, answer=clip.answer[: closing(clip.answer)].rstrip())


class Reader(nn.Module):
    """Linear reader of the story (what covers a visual token) in states of the decoder. In training only.

    Args:
        hidden: size of the states.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.story = nn.Linear(hidden, sum(n + 1 for n in STORY.values()))
        nn.init.zeros_(self.story.weight)

    def loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Sum of cross-entropies; states [tokens, E], labels as in Batch.looks; the ground counts a tenth."""
        return dense_loss_of(self.story(F.rms_norm(states.float(), states.shape[-1:])), STORY, labels)
