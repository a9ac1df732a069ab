"""Which token the target draws at each node: operators where they can, transformers' processors where they must."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparrow_ext
from sparrow.tree import DraftTree

Processor = Callable[[Tensor, Tensor], Tensor]
UNDRAWABLE = 1 << 30  # a bit of the error word, beside the operators' own
NO_DRAW = (
    "cannot sample: the logits of a token hold NaN or +inf, or nothing but -inf (float16 overflow, broken weights?)"
)
MIN_TEMPERATURE, MAX_FLOAT32 = 1e-30, 3.4028234e38  # what sample_rows takes


@dataclass(frozen=True)
class SamplingRules:
    """What generate() asked for.

    Attributes:
        temperature: 0 = greedy.
        top_k: 0 = off.
        top_p: 1 = off.
        repetition_penalty: 1 = off.
        seed: of the sequence's noise.
        processor: transformers' whole processor list, where it holds one that is no operator; it then does everything
            but the draw itself.

    Raises:
        ValueError: a value that the operators do not take, named.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    processor: Processor | None = None

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


class Sampler:
    """Draws one token per node. The noise depends on (seed, absolute position, token id) only, so the output is that of
    plain decoding with the same seed, whatever the tree.

    Args:
        rules: what to apply.
        prompt: int64 [B, P].
        vocab_size: columns of the logits.
    """

    def __init__(self, rules: SamplingRules, prompt: Tensor, vocab_size: int):
        b, device = prompt.shape[0], prompt.device
        self.rules, plain = rules, rules.processor is None

        def per_sequence(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((b,), value, dtype=dtype, device=device)

        self.temperature = per_sequence(rules.temperature if plain or not rules.temperature else 1.0)
        self.seed = per_sequence(rules.seed, torch.int64) + torch.arange(b, device=device)
        self.top_k = per_sequence(rules.top_k, torch.int32) if plain and rules.top_k else None
        self.top_p = per_sequence(rules.top_p) if plain and rules.top_p < 1 else None
        self.penalty = self.seen = None
        if plain and rules.repetition_penalty != 1:
            self.penalty = per_sequence(rules.repetition_penalty)
            self.seen = torch.zeros(b, vocab_size, dtype=torch.bool, device=device).scatter_(1, prompt, True)
        self.sequence = None if plain else prompt  # what processors are asked about

    def see(self, tokens: Tensor) -> None:
        """Marks emitted tokens, int64 [B, T]; -1 pads."""
        if self.seen is not None:
            self.seen.scatter_(1, torch.where(tokens < 0, tokens[:, :1], tokens), True)

    def first(self, logits: Tensor, prompt: Tensor) -> Tensor:
        """The token after the prompt, int64 [B]; logits float32 [B, V].

        Raises RuntimeError where nothing can be drawn, as `check` does for the rounds.
        """
        if self.rules.processor is not None:
            logits = self.rules.processor(prompt, logits)
        elif self.seen is not None and self.penalty is not None:
            logits = logits[:, None].clone()
            none = torch.zeros(prompt.shape[0], 1, 1, dtype=torch.int64, device=prompt.device)
            sparrow_ext.repetition_penalty(logits, prompt[:, -1:].contiguous(), none, self.seen, self.penalty)
            logits = logits[:, 0]
        if self.rules.temperature > 0 and bool(undrawable(logits).any()):
            raise RuntimeError(NO_DRAW)
        position = torch.full((prompt.shape[0], 1), prompt.shape[1], dtype=torch.int64, device=prompt.device)
        token = self._draw(logits[:, None], position)
        self.see(token)
        if self.sequence is not None:
            self.sequence = torch.cat([self.sequence, token], dim=1)
        return token[:, 0]

    def choose(self, logits: Tensor, tree: DraftTree, length: Tensor, stops: Callable[[int], bool]) -> Tensor:
        """The target's token at every node, int64 [B, N]; -1 at nodes a processor was not asked about.

        Args:
            logits: float32 [B, N, V]; changed in place by a repetition penalty.
            tree: what was verified.
            length: int64 [B], absolute position of the token drawn at the root.
            stops: whether generation ends with this token; asked once about each one drawn through a processor, in
                order.
        """
        position = length[:, None] + tree.depth
        if self.rules.processor is not None:
            return self._walk(logits, tree, position, stops)
        if self.seen is not None and self.penalty is not None:
            sparrow_ext.repetition_penalty(logits, tree.tokens, tree.anc, self.seen, self.penalty)
        return self._draw(logits, position)

    def check(self, logits: Tensor, path: Tensor, error: Tensor) -> None:
        """Sets UNDRAWABLE in the error word, int32 [1], where a visited node has logits nothing can be drawn from.

        transformers raises there, too; greedy decoding takes the argmax in both. logits: float32 [B, N, V]; path: int32
        [B, T], the visited nodes, -1 pads.
        """
        if self.rules.temperature == 0 or self.rules.processor is not None:
            return
        batch = torch.arange(len(path), device=path.device)[:, None]
        bad = undrawable(logits[batch, path.clamp(min=0).long()])  # in place of a pad the root, which is visited
        error.bitwise_or_(bad.any().int() * UNDRAWABLE)

    def _draw(self, logits: Tensor, position: Tensor) -> Tensor:
        if self.rules.temperature == 0:
            # a processor may return float64, which the operators do not take
            return logits.argmax(-1) if logits.dtype == torch.float64 else sparrow_ext.argmax_rows(logits)
        if logits.dtype == torch.float64:
            logits = (logits - logits.amax(-1, keepdim=True)).float()
        return sparrow_ext.sample_rows(logits, self.temperature, self.seed, position, self.top_k, self.top_p)

    def _walk(self, logits: Tensor, tree: DraftTree, position: Tensor, stops: Callable[[int], bool]) -> Tensor:
        """Asks the processors about visited nodes only, in order, each with its own unpadded prefix.

        They may keep state between calls, so they are called exactly as plain decoding calls them. One host
        synchronisation per visited node.
        """
        assert self.rules.processor is not None and self.sequence is not None
        chosen = torch.full_like(tree.tokens, -1)
        tokens, parents = tree.tokens[0].tolist(), tree.parent[0, : int(tree.num_nodes[0])].tolist()
        node: int | None = 0
        while node is not None:
            scores = self.rules.processor(self.sequence, logits[:1, node])
            drawn = self._draw(scores[:, None], position[:1, node : node + 1].contiguous())
            token, broken = torch.cat([drawn[0], undrawable(scores).long()]).tolist()
            if broken and self.rules.temperature > 0:
                raise RuntimeError(NO_DRAW)
            chosen[0, node] = token
            self.sequence = torch.cat([self.sequence, chosen[:1, node : node + 1]], dim=1)
            if stops(token):
                break
            node = next((i for i, up in enumerate(parents) if up == node and tokens[i] == token), None)
        return chosen


def undrawable(logits: Tensor) -> Tensor:
    """bool [...]: rows of logits [..., V] whose softmax is no distribution: NaN or +inf there, or only -inf."""
    return ~logits.amax(-1).isfinite()
