"""Training sequences: a clip's states as stored, the drafter's rows made of them, and padded batches of those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparrow.targets.teacher import TeacherStates


def stored(
    teacher: TeacherStates,
    answer_length: int,
    hidden_layers: Sequence[int],
    visual_layer: int | None,
    visual_states: bool = False,
) -> dict[str, Tensor]:
    """What of a clip's states is kept: T text rows, M visual rows, N = T + M tokens.

    Returns:
        tokens int64 [T]; index int64 [T], their places in the sequence; position int64 [N], the target's;
        first int64 [1], text rows of the prompt = the first answer token's row;
        hidden [T, layers, E], the states of the previous place (zeros at place 0);
        final [T, E], after the final norm at the row itself, where hidden_layers does not begin with that;
        visual [M, E], where visual_layer is given; visual_states [M, layers, E], the states of the places before them,
        where asked.
    """
    index = teacher.is_text.nonzero()[:, 0]
    states = torch.stack([teacher.states[layer] for layer in hidden_layers], dim=1)

    def before(places: Tensor) -> Tensor:
        return torch.where((places > 0)[:, None, None], states[places - 1], torch.zeros_like(states[:1]))

    kept = {
        "tokens": teacher.tokens[index],
        "index": index,
        "position": teacher.position,
        "first": (teacher.is_text.sum() - answer_length)[None],
        "hidden": before(index),
    }
    final = max(teacher.states)
    if final != hidden_layers[0]:
        kept["final"] = teacher.states[final][index]
    if visual_layer is not None:
        kept["visual"] = teacher.states[visual_layer][~teacher.is_text]
    if visual_states:
        kept["visual_states"] = before((~teacher.is_text).nonzero()[:, 0])
    return {name: value.contiguous() for name, value in kept.items()}


@dataclass
class Batch:
    """B sequences, padded behind to the longest: T text rows, M visual rows (0 in text-only training).

    Attributes:
        tokens: int64 [B, T].
        hidden: [B, T, layers * E], h_{t-1}, noise added.
        state: [B, T, E], h_t of the first layer, what the drafter's output stands for; right at rows that have a loss.
        final: [B, T, E], the target's state after its final norm at the row, likewise.
        positions: int64 [B, T].
        follows_text: bool [B, T], the previous place of the whole sequence holds text.
        loss_pass: int64 [B, T], passes with a loss at this row: 0 in the prompt, at the last row and at padding; n at
            the n-th answer token, whose chain of own outputs starts at the first answer token at the earliest.
        visual: [B, M, E], the target's states at visual rows.
        visual_states: [B, M, layers * E], h_{t-1} of visual rows (EAGLE-3); [B, M, 0] where they have none.
        visual_positions: int64 [B, M].
        visual_before: int64 [B, T], visual rows before each text row.
        visual_block: int64 [B, M], the block of contiguous visual rows each belongs to, from 1; 0 = padding.
    """

    tokens: Tensor
    hidden: Tensor
    state: Tensor
    final: Tensor
    positions: Tensor
    follows_text: Tensor
    loss_pass: Tensor
    visual: Tensor
    visual_states: Tensor
    visual_positions: Tensor
    visual_before: Tensor
    visual_block: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def counts(self, passes: int) -> Tensor:
        """Rows with a loss in each pass, int64 [passes]."""
        steps = torch.arange(passes, device=self.loss_pass.device)
        return (self.loss_pass.flatten()[:, None] > steps).sum(0)


def sequence(kept: Mapping[str, Tensor], positions: str, visual_positions: str, noise: Tensor | None) -> Batch:
    """One clip's rows as a batch without its first axis.

    Args:
        kept: see `stored`.
        positions: "text", "sequence" or "target": numbers of text rows, as at inference.
        visual_positions: "before", "same" or "target", see Recipe.
        noise: [T, layers, E], in units of each state's RMS; None = none.
    """
    index, hidden, first = kept["index"], kept["hidden"], int(kept["first"])
    rows, places = len(index), torch.arange(len(kept["position"]))
    text_numbers = {"text": torch.arange(rows), "sequence": index, "target": kept["position"][index]}[positions]
    is_visual = torch.ones_like(places, dtype=torch.bool).index_fill_(0, index, False)
    at = places[is_visual] if "visual" in kept else places[:0]
    following = torch.searchsorted(index, at)  # the text row behind each visual row; prompts end with text
    numbers = {
        "before": text_numbers[following] - (index[following] - at),
        "same": text_numbers[following] - 1,
        "target": kept["position"][at],
    }[visual_positions]
    row = torch.arange(rows)
    loss_pass = torch.where(row < rows - 1, (row - first + 1).clamp(min=0), 0)
    state = torch.cat([hidden[1:, 0], hidden[-1:, 0]])
    if noise is not None:
        scale = hidden.float().pow(2).mean(-1, keepdim=True).sqrt()
        hidden = (hidden.float() + noise * scale).to(hidden.dtype)
    return Batch(
        tokens=kept["tokens"],
        hidden=hidden.flatten(1),
        state=state,
        final=kept.get("final", state),
        positions=text_numbers,
        follows_text=torch.cat([torch.zeros(1, dtype=torch.bool), index.diff() == 1]),
        loss_pass=loss_pass,
        visual=kept.get("visual", state[:0]),
        visual_states=kept["visual_states"].flatten(1) if "visual_states" in kept else hidden.new_empty(len(at), 0),
        visual_positions=numbers,
        visual_before=(index - row) if "visual" in kept else torch.zeros_like(row),
        visual_block=torch.cat([at[:1] >= 0, at.diff() > 1]).cumsum(0),
    )


def collate(sequences: Sequence[Batch]) -> Batch:
    """Stacks sequences; padding is zero, has no loss, and is seen by no row that has one."""
    columns = {f.name: [getattr(s, f.name) for s in sequences] for f in fields(Batch)}
    return Batch(**{name: pad_sequence(values, batch_first=True) for name, values in columns.items()})
