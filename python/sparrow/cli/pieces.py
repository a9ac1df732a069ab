"""Which text each token adds. A character may need several tokens: it comes with its last one."""

from typing import Any

BROKEN = "\ufffd"  # what bytes that are no whole character decode to


class Pieces:
    """The text that each further token adds to those before it.

    Args:
        tokenizer: has transformers' decode.
        special: whether special tokens are text, too.
    """

    def __init__(self, tokenizer: Any, special: bool = False):
        self.tokenizer, self.special = tokenizer, special
        self.ids: list[int] = []  # the last whole piece, as context, and what is not whole yet
        self.context = 0

    def add(self, token: int) -> str:
        """The text that is whole with this token; empty inside a character."""
        self.ids.append(token)
        text = self._text()
        if text.endswith(BROKEN):
            return ""
        self.ids, self.context = self.ids[self.context :], len(self.ids) - self.context
        return text

    def rest(self) -> str:
        """What never became a whole character."""
        text = self._text()
        self.ids, self.context = [], 0
        return text

    def _text(self) -> str:
        before = self._decode(self.ids[: self.context])
        now = self._decode(self.ids)
        return now[len(before) :] if now.startswith(before) else now

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=not self.special, clean_up_tokenization_spaces=False)


def texts_of(tokenizer: Any, tokens: list[int]) -> list[str]:
    """Of each token the text it adds, special tokens included; what never became whole comes with the last one."""
    pieces = Pieces(tokenizer, special=True)
    texts = [pieces.add(token) for token in tokens]
    if texts:
        texts[-1] += pieces.rest() if pieces.ids[pieces.context :] else ""
    return texts


def text_after(tokenizer: Any, before: int, token: int) -> str:
    """What a token adds behind another one; BROKEN where it is a part of a character."""
    pieces = Pieces(tokenizer, special=True)
    pieces.add(before)
    return pieces.add(token) or pieces.rest() or BROKEN
