"""Which words of an answer only the video can tell, by class; synonyms mean the same."""

import re
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparrow.miniature.world.language import BIG, COUNTS, VERBS
from sparrow.miniature.world.scene import COLOURS, KINDS

# class -> its meanings, each a tuple of words
MEANINGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "colour": tuple((word,) for word in COLOURS),
    "kind": tuple((word,) for word in KINDS),
    "size": tuple(BIG.values()),
    "place": (("upper", "top"), ("lower", "bottom"), ("left",), ("right",), ("center", "middle")),
    "way": (("left",), ("right",), ("up",), ("down",)),
    "count": tuple((word,) for word in COUNTS),
    "second": tuple((digit,) for digit in "0123456789"),
    "order": (("before",), ("after",)),
}
CORE = ("colour", "kind", "size", "place")
NAMES = tuple(MEANINGS)
_VERB = "|".join(["moves", *(verb for verbs in VERBS.values() for verb in verbs)])


def _words(name: str) -> str:
    return "|".join(word for group in MEANINGS[name] for word in group)


# The first alternative that fits at a place counts: a way is no place, a background's colour is no shape's.
_PATTERN = re.compile(
    rf"dark (?:{_words('colour')})\b|to the (?P<way>left|right)\b|(?:{_VERB}) (?P<way2>up|down)\b"
    rf"|second (?P<second>\d)|appears (?P<order>before|after)\b|(?<!\w)(?P<colour>{_words('colour')})\b"
    rf"|(?<!\w)(?P<kind>{_words('kind')})\b|(?<!\w)(?P<size>{_words('size')})\b|(?<!\w)(?P<place>{_words('place')})\b"
    rf"|(?<!\w)(?P<count>{_words('count')})\b"
)

_CLOSING = re.compile(r"(?:At the end|In the last frame), |In total, |There (?:is|are) \w+ large and ")


def closing(description: str) -> int:
    """Where a description's closing begins, which repeats shapes already named; its length where it has none."""
    found = _CLOSING.search(description)
    return found.start() if found else len(description)


class Tagger:
    """Finds these words among a tokenizer's tokens.

    Args:
        tokenizer: a fast one; each word, after a space, must be one token of it.

    Raises:
        ValueError: a word is several tokens.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @cached_property
    def tables(self) -> Tensor:
        """int64 [classes, V]: the number of a token's meaning in the class, -1 = none."""
        table = torch.full((len(NAMES), len(self.tokenizer)), -1)
        for row, groups in enumerate(MEANINGS.values()):
            for number, words in enumerate(groups):
                for word in words:
                    ids = self.tokenizer(word if word.isdigit() else f" {word}")["input_ids"]
                    if len(ids) != 1:
                        raise ValueError(f"every word must be one token, {word!r} is {len(ids)}")
                    table[row, ids[0]] = number
        return table

    def classes(self, answer: str) -> list[int]:
        """For each token of an answer the number of its class in NAMES, -1 = none."""
        starts = {}
        for match in _PATTERN.finditer(answer):
            if match.lastgroup:
                starts[match.start(match.lastgroup)] = NAMES.index(match.lastgroup.rstrip("2"))
        spans = self.tokenizer(answer, return_offsets_mapping=True)["offset_mapping"]
        found = [
            next((starts[at] for at in range(begin, min(begin + 2, end)) if at in starts), -1) for begin, end in spans
        ]
        # a word at the start of a line or text has no space before it: another token, not counted
        return [-1 if name >= 0 and not self._known(answer[a:b], name) else name
                for name, (a, b) in zip(found, spans, strict=True)]  # fmt: skip

    def first(self, answer: str) -> list[bool]:
        """For each token of a description whether it is before the closing."""
        end = closing(answer)
        return [b <= end for _, b in self.tokenizer(answer, return_offsets_mapping=True)["offset_mapping"]]

    def _known(self, piece: str, name: int) -> bool:
        words = [word for group in MEANINGS[NAMES[name]] for word in group]
        return piece in words if NAMES[name] == "second" else piece.startswith(" ") and piece[1:] in words

    def meaning(self, tokens: Tensor, classes: Tensor) -> Tensor:
        """The meaning of each token within the class named beside it, int64 [n]; -1 = it has none there."""
        return self.tables[classes, tokens]
