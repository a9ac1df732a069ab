"""A prompt's pass through an unmodified decoder: in pieces, and from some layer on for some rows only."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Prefill:
    """What the prompt's forward pass leaves behind.

    Attributes:
        logits: float32 [B, V] at the last prompt token.
        hidden: [B, R, E], the requested layer's states of the prompt tokens at `places`.
        next_position: int64 [..., B, 1], the position ids of the first generated token (3 or 4 axes under M-RoPE).
        text_position: int64 [B, P], the last axis' positions (equal on every axis at text tokens).
        visual: [B, P, E], states of another layer, for what a drafter sees of the video (layer 0: at visual tokens the
            projector's embeddings); None where nobody asked for them.
        places: int64 [R], ascending; None = those of all P tokens are there.
    """

    logits: Tensor
    hidden: Tensor
    next_position: Tensor
    text_position: Tensor
    visual: Tensor | None = None
    places: Tensor | None = None

    @property
    def at(self) -> Tensor:
        """`places`, also where they are all."""
        hidden = self.hidden
        return torch.arange(hidden.shape[1], device=hidden.device) if self.places is None else self.places

    def everywhere(self, count: int) -> "Prefill":
        """With states at all of `count` places: zeros where there were none."""
        hidden = self.hidden.new_zeros(len(self.hidden), count, self.hidden.shape[2])
        hidden[:, self.at] = self.hidden
        return replace(self, hidden=hidden, places=None)


@dataclass(frozen=True)
class Portions:
    """What of a prompt is run, and how much at a time.

    Attributes:
        text_states: of hidden states those of text tokens and of the token before each are wanted, and no others: of
            the rest the last layer makes keys and values alone. Exact.
        chunk: tokens that are run at a time; None = all. Exact.
        drop_layer: from this layer on (0 = the first) visual tokens are neither run nor kept, and text does not see
            them. LOSSY.
    """

    text_states: bool = False
    chunk: int | None = None
    drop_layer: int | None = None

    def rows(self, is_text: Tensor) -> Tensor | None:
        """bool [N], which tokens of prompts bool [B, N] run through every layer; None = all."""
        text = is_text.any(0)
        if self.drop_layer is not None:
            wanted = text.clone()
        elif self.text_states:
            wanted = text | torch.cat([text[1:], text[:1]])
            wanted[0] = True
        else:
            return None
        wanted[-1] = True
        return wanted


WHOLE = Portions()


class PromptPass:
    """Inside `running` the decoder runs a prompt by pieces.

    Args:
        decoder: a transformers text model.
        cache_name: under which its layers take the cache.
        portions, rows: see Portions.
        first: tokens that are in the cache already.
        attention: the name of the decoder's attention.
    """

    def __init__(
        self, decoder: Any, cache_name: str, portions: Portions, rows: Tensor | None, first: int, attention: str
    ):
        self.decoder, self.cache_name, self.portions, self.first = decoder, cache_name, portions, first
        self.wanted, self.attention = rows, attention
        self.rows = torch.empty(0)  # int64, of the piece that runs

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The decoder's forward and its hooks are as before afterwards."""
        if self.wanted is None and self.portions.chunk is None:
            yield
            return
        own, layers, drop = vars(self.decoder).get("forward"), self.decoder.layers, self.portions.drop_layer
        before: dict[int, Callable[..., Any]] = {}
        if drop is not None:
            before = {k: functools.partial(self._text_alone, begins=k == drop) for k in range(drop, len(layers))}
        elif self.wanted is not None:
            before = {len(layers) - 1: self._last_layer}
        hooks = [layers[k].register_forward_pre_hook(hook, with_kwargs=True) for k, hook in before.items()]
        vars(self.decoder)["forward"] = functools.partial(self._pieces, self.decoder.forward)
        try:
            yield
        finally:
            vars(self.decoder).pop("forward")
            if own is not None:
                vars(self.decoder)["forward"] = own
            for hook in hooks:
                hook.remove()

    def chosen(self, states: Tensor) -> Tensor:
        """The wanted rows of a layer's output [B, N or R, E] in the piece that runs."""
        every = self.wanted is None or states.shape[1] == len(self.rows)
        return states if every else states[:, self.rows]

    # ---- pieces ----

    def _pieces(self, whole: Callable[..., Any], **inputs: Any) -> Any:
        """The decoder's forward. Returns what the last piece does."""
        count = inputs["inputs_embeds"].shape[1]
        chunk, out = self.portions.chunk or count, None
        for start in range(0, count, chunk):
            end = min(start + chunk, count)
            if self.wanted is not None:
                self.rows = self.wanted[start:end].nonzero()[:, 0]
            self.start, self.end = self.first + start, self.first + end
            with contextlib.suppress(_Enough):
                out = whole(**(inputs if chunk >= count else _piece(inputs, start, end, self.end)))
        return out

    # ---- rows ----

    def _last_layer(self, layer: nn.Module, args: tuple[Tensor], inputs: dict[str, Any]) -> Any:
        """Before the last layer: all rows' keys and values, then only the wanted rows go through it."""
        hidden, rows = args[0], self.rows
        mask = self._mask(inputs["attention_mask"], hidden)
        if len(rows) == hidden.shape[1] or mask is None:
            return None
        cache = _Store(inputs[self.cache_name])
        with contextlib.suppress(_Enough):
            layer.forward(hidden, **inputs | {self.cache_name: cache})
        if not len(rows):
            raise _Enough
        return (hidden[:, rows],), of_rows(inputs, rows) | {"attention_mask": mask, self.cache_name: _Stored(cache)}

    def _mask(self, mask: Any, hidden: Tensor) -> Tensor | None:
        """[B or 1, 1, R, keys], what the wanted rows see; None where their attention takes no such mask."""
        if isinstance(mask, Tensor) and mask.dim() == 4:
            return mask[..., self.rows, :]
        if mask is not None or self.attention != "sdpa":
            return None
        places = torch.arange(self.end, device=hidden.device)
        return (places <= self.start + self.rows[:, None])[None, None]

    def _text_alone(self, layer: nn.Module, args: tuple[Tensor], inputs: dict[str, Any], begins: bool) -> Any:
        """Before a layer that has no visual rows; `begins`: before the first of them."""
        hidden, mask = args[0], inputs["attention_mask"]
        assert self.wanted is not None
        if not len(self.rows):
            raise _Enough
        if isinstance(mask, Tensor):
            mask = mask[..., self.rows, :][..., self.wanted[: self.end].nonzero()[:, 0]]
        return (hidden[:, self.rows] if begins else hidden,), of_rows(inputs, self.rows) | {"attention_mask": mask}


def of_rows(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """A decoder layer's inputs for some rows: rotations [..., N, D] and numbers [..., N] of these, else as it is."""
    made = dict(inputs)
    made["position_embeddings"] = tuple(t[..., rows, :] for t in inputs["position_embeddings"])
    for name in ("position_ids", "cache_position"):
        if isinstance(value := inputs.get(name), Tensor):
            made[name] = value[..., rows]
    return made


def _piece(inputs: Mapping[str, Any], start: int, end: int, seen: int) -> dict[str, Any]:
    """A decoder's inputs for its rows [start, end); seen: those of the cache, too, up to `end`."""
    made = {**inputs, "inputs_embeds": inputs["inputs_embeds"][:, start:end]}
    for name in ("position_ids", "cache_position"):
        if isinstance(value := inputs.get(name), Tensor):
            made[name] = value[..., start:end]
    if isinstance(mask := inputs.get("attention_mask"), Tensor):
        made["attention_mask"] = None if bool((mask == 1).all()) else mask[:, :seen]
    if isinstance(visual := inputs.get("visual_pos_masks"), Tensor):  # Qwen3-VL's features for its first layers
        places = visual.nonzero()[:, 1]
        here = (places >= start) & (places < end)
        made["visual_pos_masks"] = visual[:, start:end]
        made["deepstack_visual_embeds"] = [features[here] for features in inputs["deepstack_visual_embeds"]]
    return made


class _Enough(Exception):
    """What is left of a pass is not needed."""


class _Store:
    """In a cache's place: keys and values are kept, and the layer ends there."""

    def __init__(self, cache: Any):
        self.cache, self.found = cache, None

    def update(self, *args: Any, **kwargs: Any) -> None:
        self.found = self.cache.update(*args, **kwargs)
        raise _Enough


class _Stored:
    """In a cache's place: what was stored, whatever comes."""

    def __init__(self, store: _Store):
        self.found = store.found

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return self.found
