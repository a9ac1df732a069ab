"""What a generation has said so far, on the host."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparrow.targets.processors import Ends


class Emitted:
    """One sequence. Tokens leave through `emit` alone; `stops` may ask about one before it does.

    Args:
        prompt: int64 [1, P].
        criteria: transformers' stopping criteria; streamer: transformers', or None.
    """

    def __init__(self, prompt: Tensor, criteria: Callable, streamer=None):
        self.prompt, self.new = prompt.cpu(), list[int]()
        self.ends, self.streamer = Ends(criteria), streamer
        self.count, self.done = 0, False
        self._ends: list[bool] = []  # the criteria's answers, token by token
        if streamer is not None:
            streamer.put(self.prompt)

    @property
    def ids(self) -> Tensor:
        """int64 [1, P + new]."""
        return torch.cat([self.prompt, torch.tensor([self.new], dtype=self.prompt.dtype)], dim=1)

    def stops(self, token: int) -> bool:
        """Whether generation ends with `token`, behind all tokens asked about before: criteria see each one once."""
        self.new.append(token)
        self._ends.append(self.ends.at(token, self.prompt.shape[1] + len(self.new), lambda: self.ids))
        return self._ends[-1]

    def emit(self, tokens: list[int]) -> list[int]:
        """Emits tokens up to the first that ends generation; returns these."""
        for at, token in enumerate(tokens):
            if self.streamer is not None:
                self.streamer.put(torch.tensor([token]))
            if self.count == len(self._ends):
                self.stops(token)
            self.done = self._ends[self.count]
            self.count += 1
            if self.done:
                return tokens[: at + 1]
        return tokens


def to_the_front(places: list[int]) -> list[int]:
    """The same places, those below len(places) each at its own: an order for TargetCache.select."""
    behind = [place for place in places if place >= len(places)]
    return [place if place in places else behind.pop() for place in range(len(places))]


class Batch:
    """The sequences of a generation, some of which go on.

    Attributes:
        all: every one, in the prompts' order.
        going: the numbers of those that go on, in the order in which the loop has them.
    """

    def __init__(self, prompts: Tensor, criteria: Callable, streamer=None):
        self.all = [Emitted(prompt, criteria, streamer) for prompt in prompts.split(1)]
        self.going = list(range(len(self.all)))

    def stops(self, place: int, token: int) -> bool:
        """See Emitted, of the sequence in this place of the loop's."""
        return self.all[self.going[place]].stops(token)

    def emit(self, tokens: Sequence[list[int]]) -> list[list[int]]:
        """See Emitted, for all that go on."""
        return [self.all[which].emit(new) for which, new in zip(self.going, tokens, strict=True)]

    def leave(self) -> list[int] | None:
        """Lets those go that are done. Returns the places of those that go on, see TargetCache.select; None = all."""
        places = [place for place, which in enumerate(self.going) if not self.all[which].done]
        if len(places) == len(self.going):
            return None
        order = to_the_front(places)
        self.going = [self.going[place] for place in order]
        return order

    def sequences(self, padding: int) -> Tensor:
        """int64 [B, P + new], prompts included; shorter ones end with `padding`."""
        ids = [one.ids[0] for one in self.all]
        return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=padding)
