"""Which token the target draws at each node: operators where they can, transformers' processors where they must."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import sparrow_ext
from sparrow.tree import DraftTree

Processor = Callable[[Tensor, Tensor], Tensor]
Stops = Callable[[int, int], bool]  # sequence, token
UNDRAWABLE = 1 << 30  # a bit of the error word, beside the operators' own
NO_DRAW = (
    "cannot sample: the logits of a token hold NaN or +inf, or nothing but -inf (float16 overflow, broken weights?)"
)
MIN_TEMPERATURE, MAX_FLOAT32 = 1e-30, 3.4028234e38  # what sample_rows takes
COLDEST = 0.01  # a drafter draws at no lower temperature: the noise decides nothing there, and its states stay in range


@dataclass(frozen=True)
class SamplingRules:
    """What generate() asked for.

    Attributes:
        temperature: 0 = greedy.
        top_k: 0 = off.
        top_p: 1 = off.
        repetition_penalty: 1 = off.
        ignored: so many of the first tokens of each sequence, padding included, the penalty does not see; () = none.
        seed: of the noise; of a batch's first sequence, the others count on; or one for each sequence.
        processors: for each sequence transformers' whole processor list, where it holds one that is no operator; it
            then does everything but the draw itself. () = operators do all.

    Raises:
        ValueError: a value that the operators do not take, named.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | tuple[int, ...] = 0
    processors: tuple[Processor, ...] = ()
    ignored: tuple[int, ...] = ()

    def __post_init__(self):
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature <= MAX_FLOAT32:
            raise ValueError(
                f"temperature must be 0 (greedy) or lie in [{MIN_TEMPERATURE:g}, {MAX_FLOAT32:g}], got "
                f"{self.temperature}"
            )
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k must lie in [0, {2**31 - 1}] (0 = off), got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must lie in [0, 1] (1 = off), got {self.top_p}")
        if not 1 / MAX_FLOAT32 <= self.repetition_penalty <= MAX_FLOAT32:
            raise ValueError(
                f"repetition_penalty must lie in [{1 / MAX_FLOAT32:g}, {MAX_FLOAT32:g}] (1 = off), got "
                f"{self.repetition_penalty}"
            )


class Noise(NamedTuple):
    """The noise of the target's next draws, for a drafter that draws with it ("coupling without communication", arXiv
    2408.07978): what it then proposes is what the target draws wherever the two agree well enough, and no draw of the
    target's depends on it. Tokens are drawn as argmax(logits / temperature + noise).

    Attributes:
        temperature: float32 [B].
        seed: int64 [B]; position: int64 [B], absolute, of the token drawn at the root.
        vocab: columns; id_map: int64 [V], their token ids, None = the columns.
        weight: so much of it.
    """

    temperature: Tensor
    seed: Tensor
    position: Tensor
    vocab: int
    id_map: Tensor | None = None
    weight: float = 1.0

    def at(self, level: int) -> Tensor:
        """float32 [B, V], of the tokens drawn so many places behind the root's."""
        noise = sparrow_ext.gumbel_noise(self.seed, self.position[:, None] + level, self.vocab, self.id_map)[:, 0]
        return noise if self.weight == 1 else noise.mul_(self.weight)


class Sampler:
    """Draws one token per node. The noise depends on (seed, absolute position, token id) only, so the output is that of
    plain decoding with the same seed, whatever the tree.

    Args:
        rules: what to apply.
        prompt: int64 [B, P].
        vocab_size: columns of the logits.
        padding: int64 [B], so many tokens at each prompt's left are none of it; None = 0.
    """

    def __init__(self, rules: SamplingRules, prompt: Tensor, vocab_size: int, padding: Tensor | None = None):
        (b, p), device = prompt.shape, prompt.device
        self.rules, plain = rules, not rules.processors
        padding = torch.zeros(b, dtype=torch.int64, device=device) if padding is None else padding

        def per_sequence(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((b,), value, dtype=dtype, device=device)

        self.temperature = per_sequence(rules.temperature if plain or not rules.temperature else 1.0)
        self.draft_temperature = per_sequence(max(rules.temperature, COLDEST))
        self.seed = torch.tensor(_seeds(rules.seed, b), device=device)
        self.top_k = per_sequence(rules.top_k, torch.int32) if plain and rules.top_k else None
        self.top_p = per_sequence(rules.top_p) if plain and rules.top_p < 1 else None
        self.penalty = self.seen = None
        if plain and rules.repetition_penalty != 1:
            self.penalty = per_sequence(rules.repetition_penalty)
            ignored = torch.tensor(rules.ignored, dtype=torch.int64, device=device) if rules.ignored else padding
            own = torch.arange(p, device=device) >= torch.maximum(ignored, padding)[:, None]
            place = torch.where(own, prompt, vocab_size)
            seen = torch.zeros(b, vocab_size + 1, dtype=torch.bool, device=device).scatter_(1, place, True)
            self.seen = seen[:, :vocab_size].contiguous()
        self._processors, self._sequences = list(rules.processors), []  # asked about int64 [1, L] of each sequence
        if not plain:
            self._sequences = [prompt[i : i + 1, n:] for i, n in enumerate(padding.tolist())]

    def select(self, order: Tensor) -> None:
        """Goes on with these sequences, int64 [B']."""
        for name in ("temperature", "draft_temperature", "seed", "top_k", "top_p", "penalty", "seen"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, value[order])
        if self._processors:
            rows = order.tolist()
            self._processors = [self._processors[row] for row in rows]
            self._sequences = [self._sequences[row] for row in rows]

    def noise(self, length: Tensor, vocab: int, id_map: Tensor | None = None, weight: float = 1.0) -> Noise | None:
        """The noise of the next draws, see there; None where none is added (greedy decoding).

        length: int64 [B], absolute position of the first of them.
        """
        if self.rules.temperature == 0:
            return None
        return Noise(self.draft_temperature, self.seed, length, vocab, id_map, weight)

    def see(self, tokens: Tensor) -> None:
        """Marks emitted tokens, int64 [B, T]; -1 pads."""
        if self.seen is not None:
            self.seen.scatter_(1, torch.where(tokens < 0, tokens[:, :1], tokens), True)

    def first(self, logits: Tensor, prompt: Tensor, length: Tensor | None = None) -> Tensor:
        """The token after the prompt, int64 [B]; logits float32 [B, V], prompt int64 [B, P], of length int64 [B] (P).

        Raises RuntimeError where nothing can be drawn, as `check` does for the rounds.
        """
        if self._processors:
            asked = zip(self._processors, self._sequences, logits.split(1), strict=True)
            logits = torch.cat([processor(sequence, own) for processor, sequence, own in asked])
        elif self.seen is not None and self.penalty is not None:
            logits = logits[:, None].clone()
            none = torch.zeros(prompt.shape[0], 1, 1, dtype=torch.int64, device=prompt.device)
            sparrow_ext.repetition_penalty(logits, prompt[:, -1:].contiguous(), none, self.seen, self.penalty)
            logits = logits[:, 0]
        if self.rules.temperature > 0 and bool(undrawable(logits).any()):
            raise RuntimeError(NO_DRAW)
        if length is None:
            length = torch.full_like(prompt[:, 0], prompt.shape[1])
        token = self._draw(logits[:, None], length[:, None])
        self.see(token)
        self._sequences = [torch.cat(pair, dim=1) for pair in zip(self._sequences, token.split(1), strict=False)]
        return token[:, 0]

    def choose(self, logits: Tensor, tree: DraftTree, length: Tensor, stops: Stops) -> Tensor:
        """The target's token at every node, int64 [B, N]; -1 at nodes a processor was not asked about.

        Args:
            logits: float32 [B, N, V]; changed in place by a repetition penalty.
            tree: what was verified.
            length: int64 [B], absolute position of the token drawn at the root.
            stops: whether generation of a sequence ends with a token; asked once about each one drawn through a
                processor, in order.
        """
        position = length[:, None] + tree.depth
        if self._processors:
            chosen = torch.full_like(tree.tokens, -1)
            for row in range(len(chosen)):
                self._walk(row, logits, tree, position, stops, chosen)
            return chosen
        if self.seen is not None and self.penalty is not None:
            sparrow_ext.repetition_penalty(logits, tree.tokens, tree.anc, self.seen, self.penalty)
        return self._draw(logits, position)

    def check(self, logits: Tensor, path: Tensor, error: Tensor) -> None:
        """Sets UNDRAWABLE in the error word, int32 [1], where a visited node has logits nothing can be drawn from.

        transformers raises there, too; greedy decoding takes the argmax in both. logits: float32 [B, N, V]; path: int32
        [B, T], the visited nodes, -1 pads.
        """
        if self.rules.temperature == 0 or self.rules.processors:
            return
        batch = torch.arange(len(path), device=path.device)[:, None]
        bad = undrawable(logits[batch, path.clamp(min=0).long()])  # in place of a pad the root, which is visited
        error.bitwise_or_(bad.any().int() * UNDRAWABLE)

    def _draw(self, logits: Tensor, position: Tensor, row: int | None = None) -> Tensor:
        """int64 [B, N] of all sequences, or [1, N] of one."""
        if self.rules.temperature == 0:
            # a processor may return float64, which the operators do not take
            return logits.argmax(-1) if logits.dtype == torch.float64 else sparrow_ext.argmax_rows(logits)
        if logits.dtype == torch.float64:
            logits = (logits - logits.amax(-1, keepdim=True)).float()
        own = slice(None) if row is None else slice(row, row + 1)
        top_k, top_p = (None if t is None else t[own] for t in (self.top_k, self.top_p))
        return sparrow_ext.sample_rows(logits, self.temperature[own], self.seed[own], position, top_k, top_p)

    def _walk(self, row: int, logits: Tensor, tree: DraftTree, position: Tensor, stops: Stops, chosen: Tensor) -> None:
        """Asks a sequence's processors about visited nodes only, in order, each with its own unpadded prefix.

        They may keep state between calls, so they are called exactly as plain decoding calls them. One host
        synchronisation per visited node.
        """
        tokens, parents = tree.tokens[row].tolist(), tree.parent[row, : int(tree.num_nodes[row])].tolist()
        node: int | None = 0
        while node is not None:
            scores = self._processors[row](self._sequences[row], logits[row : row + 1, node])
            drawn = self._draw(scores[:, None], position[row : row + 1, node : node + 1].contiguous(), row)
            token, broken = torch.cat([drawn[0], undrawable(scores).long()]).tolist()
            if broken and self.rules.temperature > 0:
                raise RuntimeError(NO_DRAW)
            chosen[row, node] = token
            self._sequences[row] = torch.cat([self._sequences[row], drawn], dim=1)
            if stops(row, token):
                break
            node = next((i for i, up in enumerate(parents) if up == node and tokens[i] == token), None)


def _seeds(seed: int | tuple[int, ...], sequences: int) -> list[int]:
    """One for each sequence, 64 bits; counting on from the largest leads to the smallest, as in the operator."""
    if isinstance(seed, tuple):
        return list(seed)
    return [(seed + i + 2**63) % 2**64 - 2**63 for i in range(sequences)]


def undrawable(logits: Tensor) -> Tensor:
    """bool [...]: rows of logits [..., V] whose softmax is no distribution: NaN or +inf there, or only -inf."""
    return ~logits.amax(-1).isfinite()
