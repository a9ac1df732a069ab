"""A tape: one target run over one clip, recorded, on which any drafter can be replayed without the target.

The output does not depend on the drafter (decoding is lossless, sampling noise is a function of seed and position), so
the tokens and states of one plain run decide how long every path of every drafter's tree is.
"""

import hashlib
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import sparrow_ext
from sparrow.decoding.generate import generate
from sparrow.drafters.config import DrafterConfig
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.protocol import DecodeState, Pending, Prompt
from sparrow.drafters.text import NOISE_WEIGHT, DraftCache, NoDrafter, catch_up, grow, noise_for, text_rows
from sparrow.drafters.visual import prompt_cache, state_before
from sparrow.evaluation.questions import sampling
from sparrow.files import write_tensors
from sparrow.sampling import Sampler, SamplingRules
from sparrow.targets.adapter import Layers
from sparrow.targets.prefilling import Prefill
from sparrow.tree import DraftTree, TreeConfig

FORMAT = 2  # of the files; 1 had no temperature and seed


@dataclass(frozen=True)
class Tape:
    """What a drafter is shown of one run.

    Attributes:
        tokens: int64 [n], everything emitted, prefill's token first.
        hidden: [n - 2, E], the target's states of tokens 0, 1, ... (nothing is drafted from later ones).
        prompt_tokens: int64 [T], the prompt's text tokens and tokens[0].
        prompt_hidden: [T, E], the state before each of them in the full sequence; zero where there is none.
        prompt_positions: int64 [T], the target's position ids.
        is_text: bool [P], the prompt.
        visual: [V, E], the states of the drafter's seen_layer at visual tokens; [0, E] for drafters that see no video.
        temperature, seed: float64 [1] and int64 [1], by which the tokens were drawn.
        visual_before: [V, E], the states before each visual token, for drafters with visual=states; else empty.
    """

    tokens: Tensor
    hidden: Tensor
    prompt_tokens: Tensor
    prompt_hidden: Tensor
    prompt_positions: Tensor
    is_text: Tensor
    visual: Tensor
    temperature: Tensor
    seed: Tensor
    visual_before: Tensor = field(default_factory=lambda: torch.empty(0))


class Recorder(NoDrafter):
    """Plain decoding that keeps what a drafter with these `hidden_layer` and `visual_layer` would be given."""

    def __init__(self, hidden_layer: Layers, visual_layer: int | None):
        self.hidden_layer, self.visual_layer = hidden_layer, visual_layer
        self.rows: list[Tensor] = []
        self.temperature = 0.0
        self.prompt: Pending | None = None
        self.is_text = self.visual = self.before = torch.empty(0)

    def identity(self) -> None:
        """Its rounds are run one by one: accept() keeps a copy of each."""

    def begin(self, prompt: Prompt) -> None:
        prefill, is_text = prompt.prefill, prompt.is_text
        self.prompt = text_rows(
            prompt.tokens, is_text, prefill.hidden, prefill.text_position, prompt.root, places=prefill.places
        )
        self.is_text = is_text[0]
        self.visual = prefill.hidden[0, :0] if prefill.visual is None else prefill.visual[~is_text]
        which, place = (~is_text).nonzero(as_tuple=True)
        self.before = state_before(prefill.hidden, which, place) if len(self.visual) else self.visual

    def accept(self, draft: None, accepted: Pending) -> None:
        self.rows.append(accepted.hidden.clone())

    def draft(self, state: DecodeState[None], shape: TreeConfig) -> DraftTree:
        self.temperature = state.sampler.rules.temperature
        return super().draft(state, shape)

    def tape(self, tokens: Tensor, seed: int) -> Tape:
        """The tape of the run; tokens int64 [n]."""
        first = self.prompt
        assert first is not None
        before = first.row_index[0].long()
        states = torch.where(before[:, None] >= 0, first.hidden[before.clamp(min=0)], 0)
        rows = self.rows[:-1]  # nothing is drafted behind the last round
        hidden = torch.cat(rows) if rows else states.new_empty(0, states.shape[1])
        prompt = first.tokens[0], states, first.positions[0], self.is_text, self.visual
        drawn = torch.tensor([self.temperature], dtype=torch.float64), torch.tensor([seed])
        return Tape(tokens, hidden, *prompt, *drawn, self.before)


def record(
    model: Any,
    inputs: dict[str, Any],
    hidden_layer: Layers,
    options: dict[str, Any],
    seed: int,
    visual_layer: int | None = None,
) -> Tape:
    """Decodes plainly and keeps tokens and states, and what drafters see of the video where asked; batch 1."""
    recorder = Recorder(hidden_layer, visual_layer)
    out = generate(model, recorder, **inputs, **options, seed=seed)
    return recorder.tape(out.sequences[0, inputs["input_ids"].shape[1] :], seed)


def replay(tape: Tape, drafter: SparrowDrafter, shape: TreeConfig, weight: float = NOISE_WEIGHT) -> list[int]:
    """Tokens emitted per round, as the live loop would emit them with this drafter and tree.

    weight: of the target's noise in the drafts; 0: as of a drafter that does not know it. The drafter is bound to its
    target; drafting is the loop's own code, only the target's choices come from the tape.
    """
    replaying, emitted = Replaying(tape, drafter, weight), []
    while not replaying.done:
        accepted, _ = replaying.draft(shape)
        emitted.append(replaying.go_on(accepted + 1))
    return emitted


class Replaying:
    """A drafter on a tape, at one token of it, from the first to the last but one.

    Args:
        tape, drafter, weight: see `replay`.
    """

    @torch.no_grad()
    def __init__(self, tape: Tape, drafter: SparrowDrafter, weight: float = NOISE_WEIGHT):
        device = drafter.weight.device
        self.tape = Tape(**{name: value.to(device) for name, value in vars(tape).items()})
        self.drafter, self.weight, self.at = drafter, weight, 0
        self.cache, pending = _begin(self.tape, drafter)
        rules = SamplingRules(float(tape.temperature), seed=int(tape.seed))
        self.sampler = Sampler(rules, self.tape.tokens[None, :1], drafter.num_draft_tokens)
        self.length = len(tape.is_text) + torch.ones(1, dtype=torch.int64, device=device)
        self.out = catch_up(drafter, pending, self.cache)

    @property
    def done(self) -> bool:
        return self.at >= len(self.tape.tokens) - 1

    @torch.no_grad()
    def draft(self, shape: TreeConfig) -> tuple[int, Tensor]:
        """How many tokens of a tree drafted here the target accepts, and the tree's scores, float32 [candidates]."""
        tokens, drafter, at = self.tape.tokens, self.drafter, self.at
        noise = noise_for(drafter, self.sampler, self.length + at, self.weight) if self.weight else None
        tree = grow(drafter, tokens[at : at + 1], *self.out, self.cache, shape, noise=noise)
        behind = (at + 1 + tree.depth).clamp(max=len(tokens))
        chosen = torch.cat([tokens, tokens.new_full((1,), -1)])[behind]  # behind the end nothing is accepted
        num_path, _, _ = sparrow_ext.tree_accept(
            tree.tokens, tree.parent, chosen, tree.num_nodes, max_path=shape.max_path
        )
        assert tree.scores is not None
        return int(num_path[0]) - 1, tree.scores[0]

    @torch.no_grad()
    def go_on(self, count: int) -> int:
        """So many tokens further, or to the end; returns how many they are."""
        tape, at = self.tape, self.at
        count = min(count, len(tape.tokens) - 1 - at)
        self.at += count
        if not self.done:
            rows = torch.arange(at, at + count, dtype=torch.int32, device=tape.tokens.device)
            emitted = tape.tokens[at + 1 : at + count + 1]
            pending = _pending(emitted, rows, tape.hidden, tape.prompt_positions[-1] + 1 + rows)
            self.out = catch_up(self.drafter, pending, self.cache)
        return count


def _begin(tape: Tape, drafter: SparrowDrafter) -> tuple[DraftCache, Pending]:
    """The drafter's cache after the prompt, and its first catch-up, as the loop's begin() makes them."""
    n, device = len(tape.tokens), tape.tokens.device
    if drafter.config.positions != "sequence":
        first = int(not drafter.config.first_row and bool(tape.is_text[0]))
        rows = torch.arange(first, len(tape.prompt_tokens), dtype=torch.int32, device=device)
        pending = _pending(tape.prompt_tokens[first:], rows, tape.prompt_hidden, tape.prompt_positions[first:])
        return DraftCache.empty(drafter, 1, len(tape.prompt_tokens) + n), pending
    p, text = len(tape.is_text), tape.is_text.nonzero()[:, 0]
    if drafter.config.visual != "none" and len(tape.visual) + len(text) != p:
        raise ValueError(f"a drafter with visual={drafter.config.visual} needs a tape recorded with its visual_layer")
    prompt = torch.zeros(1, p, dtype=torch.int64, device=device)
    prompt[0, text] = tape.prompt_tokens[:-1]
    hidden = tape.prompt_hidden.new_zeros(1, p, tape.prompt_hidden.shape[1])
    hidden[0, text[text > 0] - 1] = tape.prompt_hidden[:-1][text > 0]
    if drafter.config.visual == "states":
        seen = (~tape.is_text).nonzero()[:, 0]
        hidden[0, seen[seen > 0] - 1] = tape.visual_before[seen > 0]
    given = tape.visual.new_zeros(1, p, tape.visual.shape[1])
    if drafter.config.visual != "none":
        given[0, ~tape.is_text] = tape.visual
    position = tape.prompt_positions[None, -1:]
    prefill = Prefill(hidden.new_empty(1, 0), hidden, position, position, given)
    cache = prompt_cache(drafter, prompt, tape.is_text[None], prefill, n)
    root = torch.zeros(1, dtype=torch.int32, device=device)
    return cache, _pending(tape.prompt_tokens[-1:], root, tape.prompt_hidden[-1:], tape.prompt_positions[-1:])


def _pending(tokens: Tensor, rows: Tensor, hidden: Tensor, positions: Tensor) -> Pending:
    """One sequence's catch-up. A prompt row without a state holds zeros, which FC reads as hsr_project's row -1."""
    count = torch.tensor([len(tokens)], dtype=torch.int32, device=tokens.device)
    return Pending(tokens[None], rows[None], hidden, positions[None].long(), count)


Inputs = Callable[[], dict[str, Any]]  # only called where something must be recorded


@dataclass(frozen=True)
class Key:
    """Which run is on a tape: a clip's, by its split, visual length and number, at a temperature."""

    split: str
    length: int
    number: int
    temperature: float


class Tapes:
    """The tapes of one target.

    Args:
        folder: where they are kept; they serve every later evaluation of the same target.
        model: the target.
        seed: of the sampling noise; clip i draws with seed + i.
        max_new_tokens: per clip.
    """

    def __init__(self, folder: pathlib.Path, model: Any, seed: int, max_new_tokens: int):
        kind = str(model.dtype).removeprefix("torch.")
        self.folder, self.model = folder / f"{model_hash(model)}-{kind}-{FORMAT}", model
        self.seed, self.max_new_tokens = seed, max_new_tokens

    def name(self, key: Key, config: DrafterConfig) -> str:
        """Of the tape's file: everything that it depends on."""
        layers = "-".join(map(str, config.state_layers))
        run = f"T{key.temperature:g}-seed{self.seed + key.number}-{self.max_new_tokens}"
        return f"{key.split}-{key.length}-{key.number}-{run}-layer{layers}.safetensors"

    def load(self, key: Key, config: DrafterConfig, inputs: Inputs) -> Tape:
        """The tape on which a drafter with this config can be replayed; recorded where it is not there."""
        options, seed = sampling(key.temperature, self.max_new_tokens), self.seed + key.number
        make = lambda: vars(record(self.model, inputs(), config.state_layers, options, seed))  # noqa: E731
        tape = Tape(**cached(self.folder / self.name(key, config), make))
        if config.seen_layer is None:
            return replace(tape, visual_before=tape.hidden[:0])
        kept = self._visual(key, config, inputs)
        return replace(tape, visual=kept["rows"], visual_before=kept.get("before", kept["rows"][:0]))

    def _visual(self, key: Key, config: DrafterConfig, inputs: Inputs) -> dict[str, Tensor]:
        """The clip's visual rows [V, E] of the layer that the drafter sees; the states before them where it asks."""
        states = config.visual == "states"
        reused = config.state_layers if states else None

        def make() -> dict[str, Tensor]:  # one token: only the prompt matters
            made = record(self.model, inputs(), reused, sampling(0.0, 1), 0, config.seen_layer)
            return {"rows": made.visual, **({"before": made.visual_before} if states else {})}

        more = f"-before{'-'.join(map(str, config.state_layers))}" if states else ""
        return cached(
            self.folder / f"{key.split}-{key.length}-{key.number}-visual{config.seen_layer}{more}.safetensors", make
        )


def cached(file: pathlib.Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the file holds, or what `make()` gives, kept there; several evaluations may share a folder."""
    if file.exists():
        try:
            return load_file(file)
        except SafetensorError as error:
            print(f"{file} is damaged ({error}): it is recorded again", file=sys.stderr)
    write_tensors(file, make())
    return load_file(file)


def model_hash(model: Any) -> str:
    """16 hex digits from up to 64 values of every parameter: another checkpoint gives another hash."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        values = p.detach().flatten()
        digest.update(name.encode())
        digest.update(values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
