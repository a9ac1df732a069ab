"""What one run takes over from prefixes, and what it leaves to them."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparrow.decoding.prefixes import Head, Owner, Prefix, Prefixes
from sparrow.drafters.protocol import DecodeState, Drafter, Prompt
from sparrow.targets.adapter import Target
from sparrow.targets.cache import TargetCache
from sparrow.targets.pixels import inputs_of, take_visuals, visuals_of
from sparrow.targets.prefilling import Prefill


def check_resumes(drafter: Drafter[Any]) -> None:
    """Raises ValueError for a drafter that cannot go on from kept rows."""
    if not drafter.resumes:
        config = getattr(getattr(drafter, "drafter", None), "config", None)
        about = "" if config is None else f" (visual={config.visual}, positions={config.positions})"
        raise ValueError(
            f"sessions and prefix stores need a drafter that can go on from kept rows; {type(drafter).__name__}{about} "
            "cannot"
        )


@dataclass
class Reuse:
    """What one run takes over and what it leaves.

    Attributes:
        prefixes: where from and where to.
        target, drafter: who runs.
        held: the model's inputs of videos and images, which transformers' generate is not to see.
        first: places before it are not run. The states of the place before it are here, or it is run once more.
        owner, head: of the prompt; None = nothing is taken over or left.
        prefix: what is taken over, cut to what is common.
    """

    prefixes: Prefixes
    target: Target
    drafter: Drafter[Any]
    held: dict[str, Any] = field(default_factory=dict)
    first: int = 0
    owner: Owner | None = None
    head: Head | None = None
    prefix: Prefix | None = None
    ends: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, prefixes: Prefixes, target: Target, drafter: Drafter[Any], inputs: dict[str, Any]) -> "Reuse":
        """For a run with these inputs of generate, out of which pixels are taken."""
        check_resumes(drafter)
        return cls(prefixes, target, drafter, take_visuals(inputs))

    def enter(self, ids: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        """Finds what is to be taken over; the model's inputs for the rest of the prompt.

        Args:
            ids: int64 [1, P], the prompt.
            inputs: what transformers' generate prepared. A prompt with hidden tokens is run as it is.
        """
        inputs = {name: value for name, value in inputs.items() if name not in self.held}
        if not inputs.get("mm_encoder_outputs"):  # from 5.24 on there, and empty
            inputs.pop("mm_encoder_outputs", None)
        mask, positions = inputs.get("attention_mask"), inputs["position_ids"][..., 0, :].cpu()
        visuals = visuals_of(self.target, ids, self.held)
        if visuals is None or (mask is not None and not mask.all()) or positions.shape[-1] != ids.shape[1]:
            return inputs | self.held
        self.owner, names = Owner.of(self.target, self.drafter), self.prefixes.names(visuals)
        places = tuple((v.first, v.end, name) for v, name in zip(visuals, names, strict=True))
        self.head = Head(ids[0].cpu(), positions, places)
        found = self.prefixes.find(self.owner, self.head)
        if found is not None:
            self._take(found)
        return inputs | inputs_of([v for v in visuals if v.first >= self.first])

    def _take(self, found: Prefix) -> None:
        """Decides how much: at least the prompt's last place is to be run, and the state before the first that is."""
        assert self.head is not None
        visual = ~self.target.is_text(self.head.ids.to(self.target.device)).cpu()
        n = self.head.common(found.head, len(self.head) - 1)
        while n > 0 and bool(visual[n - 1]) and n - 1 not in found.ends:
            n = int(self.head.common(found.head, n - 1))
        self.first = n if n > 0 and bool(visual[n - 1]) else max(n - 1, 0)
        if self.first:
            self.prefix, self.ends = found.cut(n), dict(found.cut(n).ends)

    def memory(self, capacity: int) -> tuple[Any, TargetCache] | None:
        """The prefix's own cache, where the run may go on in it and has room for `capacity` rows."""
        if self.prefix is None or not self.prefixes.in_place or self.prefix.cache.capacity < capacity:
            return None
        return self.prefix.room, self.prefix.cache

    def fill(self, cache: TargetCache) -> int:
        """Puts the rows that are taken over into the run's cache. Returns the first place that is not."""
        if self.prefix is not None and cache is not self.prefix.cache:
            cache.take_over(self.prefix.cache, self.prefix.rows(self.first))
        elif self.prefix is not None:
            cache.set_length(self.prefix.rows(self.first))
        return self.first

    @property
    def gone(self) -> Tensor:
        """Places of the prompt that have no rows, see Prefix."""
        return torch.empty(0, dtype=torch.int64) if self.prefix is None else self.prefix.gone

    def draft(self, prompt: Prompt) -> Any:
        """The drafter's state after the prompt."""
        return self.drafter.begin(prompt) if self.prefix is None else self.drafter.resume(self.prefix.draft, prompt)

    def joined(self, prefill: Prefill) -> Prefill:
        """The prefill with the positions of all places, and states from the last place on that was taken over."""
        if self.head is None:
            return prefill
        states, places = prefill.hidden, prefill.at
        text = self.target.is_text(self.head.ids.to(places.device)).cpu()
        ends = (~text[self.first :] & torch.cat([text[self.first + 1 :], torch.tensor([True])])).nonzero()[:, 0]
        rows = torch.searchsorted(places.cpu(), self.first + ends)
        self.ends |= {self.first + end: states[:, at].clone() for end, at in zip(ends.tolist(), rows, strict=True)}
        if not self.first:
            return prefill
        if (before := self.ends.get(self.first - 1)) is not None:
            states, places = torch.cat([before[:, None], states], 1), torch.cat([places[:1] - 1, places])
        return replace(
            prefill,
            hidden=states,
            places=places,
            text_position=self.head.positions.reshape(-1, len(self.head))[-1:].to(states.device),
        )

    def leave(self, ids: Tensor, cache: TargetCache, room: Any, state: DecodeState) -> None:
        """Hands over what ran: ids int64 [1, N] on the host, the last of them emitted and not run."""
        if self.head is None or self.owner is None:
            return
        n, p = ids.shape[1] - 1, len(self.head)
        after = self.head.positions[..., -1:] + 1 + torch.arange(n - p)
        head = Head(ids[0, :n], torch.cat([self.head.positions, after], dim=-1), self.head.visuals)
        draft = self.drafter.keep(state.draft, state.error)
        self.prefixes.keep(Prefix(self.owner, head, cache, self.ends, draft, room, self.gone))
