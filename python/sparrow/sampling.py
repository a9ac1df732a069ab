"""Which token the target draws at each node: operators where they can, transformers' processors where they must."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparrow_ext
from sparrow.tree import DraftTree

Processor = Callable[[Tensor, Tensor], Tensor]


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
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    processor: Processor | None = None


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
        self.rules = rules
        drawn_by_processor = rules.processor is not None and rules.temperature > 0
        self.temperature = torch.full((b,), 1.0 if drawn_by_processor else rules.temperature, device=device)
        self.seed = torch.full((b,), rules.seed, dtype=torch.int64, device=device) + torch.arange(b, device=device)
        plain = rules.processor is None
        self.top_k = torch.full((b,), rules.top_k, dtype=torch.int32, device=device) if plain and rules.top_k else None
        self.top_p = torch.full((b,), rules.top_p, device=device) if plain and rules.top_p < 1 else None
        self.penalty = self.seen = None
        if plain and rules.repetition_penalty != 1:
            self.penalty = torch.full((b,), rules.repetition_penalty, device=device)
            self.seen = torch.zeros(b, vocab_size, dtype=torch.bool, device=device).scatter_(1, prompt, True)
        self.sequence = prompt

    def see(self, tokens: Tensor) -> None:
        """Marks emitted tokens, int64 [B, T]; -1 pads."""
        if self.seen is not None:
            self.seen.scatter_(1, torch.where(tokens < 0, tokens[:, :1], tokens), True)

    def first(self, logits: Tensor, prompt: Tensor) -> Tensor:
        """The token after the prompt, int64 [B]; logits float32 [B, V]."""
        if self.rules.processor is not None:
            logits = self.rules.processor(prompt, logits)
        elif self.seen is not None and self.penalty is not None:
            logits = logits[:, None].clone()
            none = torch.zeros(prompt.shape[0], 1, 1, dtype=torch.int64, device=prompt.device)
            sparrow_ext.repetition_penalty(logits, prompt[:, -1:].contiguous(), none, self.seen, self.penalty)
            logits = logits[:, 0]
        position = torch.full((prompt.shape[0], 1), prompt.shape[1], dtype=torch.int64, device=prompt.device)
        token = self._draw(logits[:, None], position)
        self.see(token)
        self.sequence = torch.cat([self.sequence, token], dim=1)
        return token[:, 0]

    def choose(self, logits: Tensor, tree: DraftTree, length: Tensor, emit: Callable[[int], bool]) -> Tensor:
        """The target's token at every node, int64 [B, N]; -1 at nodes a processor was not asked about.

        Args:
            logits: float32 [B, N, V]; changed in place by a repetition penalty.
            tree: what was verified.
            length: int64 [B], absolute position of the token drawn at the root.
            emit: takes each token drawn through a processor and says whether generation ends with it.
        """
        position = length[:, None] + tree.depth
        if self.rules.processor is not None:
            return self._walk(logits, tree, position, emit)
        if self.seen is not None and self.penalty is not None:
            sparrow_ext.repetition_penalty(logits, tree.tokens, tree.anc, self.seen, self.penalty)
        return self._draw(logits, position)

    def _draw(self, logits: Tensor, position: Tensor) -> Tensor:
        if self.rules.temperature == 0:
            return sparrow_ext.argmax_rows(logits)
        return sparrow_ext.sample_rows(logits, self.temperature, self.seed, position, self.top_k, self.top_p)

    def _walk(self, logits: Tensor, tree: DraftTree, position: Tensor, emit: Callable[[int], bool]) -> Tensor:
        """Asks the processors about visited nodes only, in order, each with its own unpadded prefix.

        They may keep state between calls, so they are called exactly as plain decoding calls them. One host
        synchronisation per visited node.
        """
        assert self.rules.processor is not None
        chosen = torch.full_like(tree.tokens, -1)
        tokens, parents = tree.tokens[0].tolist(), tree.parent[0, : int(tree.num_nodes[0])].tolist()
        node: int | None = 0
        while node is not None:
            scores = self.rules.processor(self.sequence, logits[:1, node])
            token = int(self._draw(scores[:, None], position[:1, node : node + 1].contiguous())[0, 0])
            chosen[0, node] = token
            self.sequence = torch.cat([self.sequence, chosen[:1, node : node + 1]], dim=1)
            if emit(token):
                break
            node = next((i for i, up in enumerate(parents) if up == node and tokens[i] == token), None)
        return chosen
