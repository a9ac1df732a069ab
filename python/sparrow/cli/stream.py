"""What is seen while a command decodes: how far the prompt is, then the text as it comes."""

import os
import re
import shutil
import sys
from typing import Any
from unicodedata import east_asian_width

from torch import Tensor, nn
from transformers import TextStreamer

from sparrow.cli.pieces import Pieces
from sparrow.decoding.generate import OnRound
from sparrow.progress import Progress

# Colours of the terminal's own palette; the bonus token is underlined, too.
ACCEPTED, BONUS, PLAIN = "\x1b[32m", "\x1b[4;33m", "\x1b[0m"
LEGEND = f"{ACCEPTED}drafted and accepted{PLAIN}, {BONUS}bonus: the target's own{PLAIN}"


def in_colour() -> bool:
    """Whether stdout is a terminal with colours that nobody has forbidden (NO_COLOR, TERM=dumb)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def ends_a_word(character: str) -> bool:
    """Blanks do, and so does each character of a script that is written without them."""
    return character.isspace() or east_asian_width(character) in "WF"


class Text(TextStreamer):
    """Streams text to stdout; on a terminal lines end between words."""

    column, space = 0, ""  # where the cursor is, and blanks that wait for the next word

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if not sys.stdout.isatty():
            super().on_finalized_text(text, stream_end)
            return
        width, text = shutil.get_terminal_size().columns, self.space + text
        words = text.rstrip(" ")
        self.space = text[len(words) :]
        for word in re.findall(r"\n|[^\S\n]*\S+|[^\S\n]+", words):
            breaks = self.column and self.column + len(word) > width
            shown = "\n" + word.lstrip() if breaks else word
            self.column = len(shown) - 1 - shown.rfind("\n") + (0 if "\n" in shown else self.column)
            print(self.paint(shown), end="", flush=True)
        if stream_end:
            print(flush=True)

    def paint(self, shown: str) -> str:
        """As it goes to the terminal."""
        return shown


class ColouredText(Text):
    """The same, round by round: a character has the colour of its token. Words come whole, as without colours."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True)
        self.pieces = Pieces(tokenizer)
        self.waiting = ""  # the begin of a word
        self.looks: list[str] = []  # of each character that is no blank and not printed yet

    def add(self, token: int, look: str) -> None:
        """Prints a token's text as far as words are whole."""
        self._add(self.pieces.add(token), look)

    def _add(self, text: str, look: str) -> None:
        self.waiting += text
        self.looks += [look for character in text if not character.isspace()]
        ends = [at for at, character in enumerate(self.waiting, 1) if ends_a_word(character)]
        if ends:
            whole, self.waiting = self.waiting[: ends[-1]], self.waiting[ends[-1] :]
            self.on_finalized_text(whole)

    def end(self) -> None:
        self._add(self.pieces.rest(), "")
        last, self.waiting = self.waiting, ""
        self.on_finalized_text(last, stream_end=True)

    def paint(self, shown: str) -> str:
        painted, now = "", ""
        for character in shown:
            look = now if character.isspace() and character != "\n" else "" if character == "\n" else self.looks.pop(0)
            if look != now:
                painted += (PLAIN if now else "") + look
            painted, now = painted + character, look
        return painted + (PLAIN if now else "")


class Stream:
    """A streamer: counts the layers of the prefill, then streams text to stdout.

    Tokens are counted, too, where the text is not seen coming.

    Args:
        rounds: its on_round is given to generate, too, which drafts: on a terminal with colours accepted and bonus
            tokens are told apart (LEGEND), `colour` is then true.
        pieces: in which the prompt is run.
    """

    def __init__(
        self, tokenizer, model, prompt_tokens: int, max_new_tokens: int, rounds: bool = False, pieces: int = 1
    ):
        self.colour = rounds and in_colour()
        self.text = (
            ColouredText(tokenizer) if self.colour else Text(tokenizer, skip_prompt=True, skip_special_tokens=True)
        )
        layers = [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
        steps = len(layers) + (pieces - 1) * len(model.model.language_model.layers)
        self.prefill = Progress(f"running the prompt of {prompt_tokens} tokens", steps, "layers")
        self.decode = Progress("decoding", max_new_tokens, "tokens at most", quiet=sys.stdout.isatty())
        self.hooks = [layer.register_forward_hook(lambda *_: self.prefill.advance()) for layer in layers]
        self.puts = 0

    def put(self, value: Tensor) -> None:
        if self.puts == 0:
            self.prefill.__enter__()
        elif self.puts == 1:
            self._end_prefill()
            self.decode.__enter__()
        self.decode.advance(value.numel() if self.puts else 0)
        self.puts += 1
        if not isinstance(self.text, ColouredText):
            self.text.put(value)
        elif self.puts == 2:  # the first token belongs to no round
            self.text.add(int(value), "")

    def on_round(self, tokens: list[int], accepted: int, seconds: float) -> None:
        """See generate: a round's tokens, the accepted ones first."""
        if isinstance(self.text, ColouredText):
            for at, token in enumerate(tokens):
                self.text.add(token, ACCEPTED if at < accepted else BONUS)

    def end(self) -> None:
        self.close()
        self.text.end()

    def close(self) -> None:
        """Shows no more; also where decoding failed."""
        self._end_prefill()
        self.decode.__exit__()

    def _end_prefill(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.prefill.__exit__()


def both(first: OnRound, second: OnRound | None) -> OnRound:
    """Calls one, then the other, if there is one."""

    def on_round(tokens: list[int], accepted: int, seconds: float) -> None:
        first(tokens, accepted, seconds)
        if second is not None:
            second(tokens, accepted, seconds)

    return on_round
