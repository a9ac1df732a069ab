"""What is seen while a command decodes: how far the prompt is, then the text as it comes."""

import re
import shutil
import sys

from torch import Tensor, nn
from transformers import TextStreamer

from sparrow.progress import Progress


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
            print(shown, end="", flush=True)
        if stream_end:
            print(flush=True)


class Stream:
    """A streamer: counts the layers of the prefill, then streams text to stdout.

    Tokens are counted, too, where the text is not seen coming.
    """

    def __init__(self, tokenizer, model, prompt_tokens: int, max_new_tokens: int):
        self.text = Text(tokenizer, skip_prompt=True, skip_special_tokens=True)
        layers = [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
        self.prefill = Progress(f"running the prompt of {prompt_tokens} tokens", len(layers), "layers")
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
        self.text.put(value)

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
