"""What is seen while a command decodes: how far the prompt is, then the text as it comes."""

import sys

from torch import Tensor, nn
from transformers import TextStreamer

from sparrow.progress import Progress


class Stream:
    """A streamer: counts the layers of the prefill, then streams text to stdout.

    Tokens are counted, too, where the text is not seen coming.
    """

    def __init__(self, tokenizer, model, prompt_tokens: int, max_new_tokens: int):
        self.text = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
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
