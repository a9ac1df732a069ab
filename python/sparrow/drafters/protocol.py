"""What the decode loop asks of a drafter, and the state it carries from round to round.

The state's invariant at the start of a round (contract of every drafter): the target's cache covers all emitted tokens
but the last; the last one is the root of the next tree.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sparrow.sampling import Sampler
from sparrow.targets.adapter import Layers, Target
from sparrow.targets.cache import TargetCache
from sparrow.targets.prefilling import Prefill
from sparrow.tree import DraftTree, TreeConfig

D = TypeVar("D")


@dataclass
class Pending:
    """Emitted tokens whose true rows the drafter has not seen yet; the last one is the round's root.

    Attributes:
        tokens: int64 [B, T].
        row_index: int32 [B, T], the row of `hidden` that holds each token's h_{t-1}; -1 = none.
        hidden: [R, E], target states.
        positions: int64 [B, T], the target's position ids of the tokens (one axis).
        num_rows: int32 [B], tokens in use (T where all are).
    """

    tokens: Tensor
    row_index: Tensor
    hidden: Tensor
    positions: Tensor
    num_rows: Tensor

    def head(self, most: int, rows: int) -> "Pending":
        """Its first `most` tokens and `rows` states, on the same memory."""
        if (most, rows) == (self.tokens.shape[1], len(self.hidden)):
            return self
        tokens, index, positions = (t[:, :most] for t in (self.tokens, self.row_index, self.positions))
        return Pending(tokens, index, self.hidden[:rows], positions, self.num_rows)

    def select(self, order: Tensor) -> "Pending":
        """What these sequences have, int64 [B']."""
        hidden = self.hidden.unflatten(0, (len(self.tokens), -1))[order]
        n, index = hidden.shape[1], self.row_index[order]
        moved = index % n + n * torch.arange(len(order), device=order.device, dtype=torch.int32)[:, None]
        index = torch.where(index < 0, index, moved)
        return Pending(self.tokens[order], index, hidden.flatten(0, 1), self.positions[order], self.num_rows[order])

    def alone(self) -> "Pending":
        """A copy of a single token's (T = 1), with no other states than its own."""
        b = len(self.tokens)
        own = torch.arange(b, dtype=torch.int32, device=self.tokens.device)[:, None]
        return Pending(
            self.tokens.clone(),
            torch.where(self.row_index < 0, -1, own),
            self.hidden[self.row_index[:, 0].clamp(min=0).long()],
            self.positions.clone(),
            self.num_rows.clone(),
        )

    @classmethod
    def joined(cls, parts: Sequence["Pending"]) -> "Pending":
        """One behind the other; all tokens of all but the last are in use."""
        b, first, index = len(parts[0].tokens), 0, []
        count = sum(len(part.hidden) for part in parts) // b  # states of each sequence
        for part in parts:
            n, sequence = len(part.hidden) // b, torch.arange(b, device=part.tokens.device, dtype=torch.int32)[:, None]
            index.append(torch.where(part.row_index < 0, -1, part.row_index - sequence * n + first + sequence * count))
            first += n
        return cls(
            torch.cat([part.tokens for part in parts], dim=1),
            torch.cat(index, dim=1),
            torch.cat([part.hidden.unflatten(0, (b, -1)) for part in parts], dim=1).flatten(0, 1),
            torch.cat([part.positions for part in parts], dim=1),
            sum(part.num_rows for part in parts[1:]) + parts[0].num_rows,
        )

    @classmethod
    def room(cls, root: Tensor, nodes: int, most: int, states: Tensor) -> "Pending":
        """Room for what rounds accept: T = `most` tokens, states of `nodes` nodes like `states` [..., E].

        root: int64 [B].
        """
        b, device = len(root), root.device
        return cls(
            tokens=torch.zeros(b, most, dtype=torch.int64, device=device),
            row_index=torch.zeros(b, most, dtype=torch.int32, device=device),
            hidden=states.new_zeros(b * nodes, states.shape[-1]),
            positions=torch.zeros(b, most, dtype=torch.int64, device=device),
            num_rows=torch.zeros(b, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True)
class Prompt:
    """A prompt the target has run, as a drafter meets it.

    Attributes:
        tokens: int64 [B, P]; tokens that the target's attention mask hides are left out: the others of each sequence
            come first, and what is behind them, where another has more, is of no use.
        is_text: bool [B, P], False there.
        prefill: the target's states of these tokens.
        root: int64 [B], the token drawn from the last logits.
        cache: the target's, P rows.
        max_new_tokens: room for so many more is needed.
        error: the CUDA operators' error word.
        lengths: int64 [B], tokens of each sequence; None = P.
        first: the prefill's states are of places from `first` on; of those up to `first` the drafter kept what it
            needs, see Drafter.resume.
    """

    tokens: Tensor
    is_text: Tensor
    prefill: Prefill
    root: Tensor
    cache: TargetCache
    max_new_tokens: int
    error: Tensor
    lengths: Tensor | None = None
    first: int = 0

    @property
    def count(self) -> Tensor:
        """int64 [B], tokens of each sequence."""
        return torch.full_like(self.root, self.tokens.shape[1]) if self.lengths is None else self.lengths


@dataclass
class DecodeState(Generic[D]):
    """Everything a generation carries from round to round.

    Its tensors stay where they are: a round writes into them, so that it can be captured and replayed.

    Attributes:
        cache: the target's; covers all emitted tokens but the roots.
        root: int64 [B], emitted and not yet run.
        length: int64 [B], tokens so far, prompt and root included = absolute position of the next drawn token.
        position: int64 [..., B, 1], the root's position ids in the target.
        sampler: temperature, seeds, seen tokens, processors.
        draft: the drafter's own, from its begin().
        error: the CUDA operators' error word, read with each round's tokens.
        accepted: what the last round accepted, T = the most a round can emit; the rows beyond num_rows are of no use.
        report: int64 [B, 2 + T] on the host (page-locked where the model is on a GPU): error, path length and emitted
            tokens of the last round.
        scores: float32 [B, candidates] beside it, DraftTree.scores of the last round's tree; None = not wanted.
        captured: its rounds are captured and replayed: what Python does in them happens once.
    """

    cache: TargetCache
    root: Tensor
    length: Tensor
    position: Tensor
    sampler: Sampler
    draft: D
    error: Tensor
    accepted: Pending
    report: Tensor
    scores: Tensor | None = None
    captured: bool = False

    @classmethod
    def after_prompt(
        cls,
        cache: TargetCache,
        root: Tensor,
        length: Tensor,
        position: Tensor,
        sampler: Sampler,
        draft: D,
        error: Tensor,
        shape: TreeConfig,
        states: Tensor,
    ) -> "DecodeState[D]":
        """The state before the first round; states [..., E] of the layers the drafter wants, of any tokens."""
        report = torch.zeros(len(root), 2 + shape.max_path, dtype=torch.int64, pin_memory=root.is_cuda)
        accepted = Pending.room(root, shape.nodes, shape.max_path, states)
        return cls(cache, root.clone(), length.clone(), position.clone(), sampler, draft, error, accepted, report)

    def select(self, order: list[int]) -> None:
        """Goes on with some of the sequences, see TargetCache.select; all but `draft`, which is its drafter's."""
        rows = torch.tensor(order, device=self.root.device)
        self.cache.select(order)
        self.sampler.select(rows)
        self.root, self.length, self.position = self.root[rows], self.length[rows], self.position[..., rows, :]
        self.accepted = self.accepted.select(rows)
        for name in ("report", "scores"):
            if (host := getattr(self, name)) is not None:
                setattr(self, name, host.new_zeros(len(order), host.shape[1], pin_memory=self.root.is_cuda))


class Drafter(Generic[D]):
    """What the loop asks of a drafter; subclass it. D is the type of its state, which it keeps in no other place.

    Attributes:
        hidden_layer: which target states it wants, if any (several: joined).
        visual_layer: the layer of the states it wants as Prefill.visual, if any.
        text_states: whether it wants states of text tokens and of the token before each only, see Portions.
        takes_batches: whether it has `select`, so that it drafts for several sequences at once.
        scores_width: the widest tree whose DraftTree.scores it gives; 0 = none. It then takes another shape in every
            round, tree.Root() among them, for which it only keeps up.
        resumes: whether it has keep() and resume(), without which sessions and prefix stores refuse it.
        reads_cache: whether it reads the target's rows, by place: none may be missing (Session's lossy_window).
    """

    hidden_layer: Layers = None
    visual_layer: int | None = None
    text_states: bool = False
    takes_batches: bool = False
    scores_width: int = 0
    resumes: bool = False
    reads_cache: bool = False

    def in_loop(self, target: Target, tree: TreeConfig | None) -> "tuple[Drafter[Any], TreeConfig | None]":
        """See EntersLoop: itself, with the tree asked for."""
        return self, tree or TreeConfig()

    def identity(self) -> Hashable | None:
        """What draft() depends on beside the state, where every draft after the first runs the same operators on the
        same memory and reads nothing on the host, so that rounds can be captured; None where it is not so.
        """
        return None

    def begin(self, prompt: Prompt) -> D:
        """The drafter's state after the prompt's prefill."""
        raise NotImplementedError

    def keep(self, draft: D, error: Tensor) -> dict[str, Tensor]:
        """What it needs of a sequence to go on from any place of it, on memory of its own.

        draft: after the last round. error: the CUDA operators' error word.
        """
        raise NotImplementedError

    def keeper(self) -> Hashable | None:
        """Equal where drafters can go on from what the other kept; None = from their own only."""
        return self.identity()

    def fingerprint(self) -> dict[str, object]:
        """What tells it, in files, from drafters that keep something else."""
        return {}

    def resume(self, kept: Mapping[str, Tensor], prompt: Prompt) -> D:
        """As begin(), where an earlier sequence, of which it kept `kept`, had the same places up to prompt.first."""
        raise NotImplementedError

    def draft(self, state: DecodeState[D], shape: TreeConfig) -> DraftTree:
        """A tree below state.root: of shape.nodes nodes, num_nodes of them in use."""
        raise NotImplementedError

    def accept(self, draft: D, accepted: Pending) -> None:
        """Takes a round's tokens, the new root last, with the states the target verified them by.

        `accepted` is DecodeState.accepted, which the next round overwrites.
        """

    def select(self, draft: D, order: Tensor) -> D:
        """The state of these sequences, int64 [B'], where others have ended."""
        raise NotImplementedError


class EntersLoop(Protocol):
    """What generate() takes as a drafter."""

    def in_loop(self, target: Target, tree: TreeConfig | None) -> tuple[Drafter[Any], TreeConfig | None]:
        """What drafts for this target in the loop, and its trees' size (None = it drafts nothing).

        Args:
            target: the model that verifies.
            tree: the size asked for; None = its own.

        Raises:
            ValueError: it was not made for this target, or cannot draft such trees.
        """
        ...
