"""What the tests of sample_rows share: cases, filters, and the comparison with the definition."""

import torch

from sparrow_ext.ops import sample_rows as op
from tests.ops.checks import available_isas, cpu_isa

FILTERS = [
    (None, None),
    (1, None),
    (40, None),
    (None, 0.0),
    (None, 0.5),
    (None, 0.95),
    (40, 0.9),
    (10**6, 1.0),
    (0, 0.3),
]


def case(batch: int, nodes: int, vocab: int, dtype=torch.float32, spread: float = 3.0, seed: int = 0):
    """logits, seed, position: any 64 bits in both."""
    g = torch.Generator().manual_seed(seed + 7 * vocab)
    logits = (torch.randn(batch, nodes, vocab, generator=g) * spread).to(dtype)
    ends = torch.iinfo(torch.int64)
    return (
        logits,
        torch.randint(ends.min, ends.max, (batch,), generator=g),
        torch.randint(ends.min, ends.max, (batch, nodes), generator=g),
    )


def filters(batch: int, top_k: int | None, top_p: float | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    k = None if top_k is None else torch.full((batch,), top_k, dtype=torch.int32)
    return k, None if top_p is None else torch.full((batch,), top_p)


def definition(logits, temperature, seed, position, top_k=None, top_p=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's draws, and bool [B, N]: the rows of which they do not hang on the last bits.

    There the two best scores differ by more than 1e-6, and so do top_p and the cumulative probabilities next to it.
    """
    arguments = (logits, temperature, seed, position, top_k, top_p)
    best = op.noisy_scores(*arguments).topk(min(2, logits.shape[-1])).values
    clear = (best[..., 0] - best[..., -1] > 1e-6) | (best.shape[-1] == 1)
    for nudge in (-1e-6, 1e-6) if top_p is not None else ():
        nudged = torch.where(top_p < 1, (top_p + nudge).clamp(0, 1 - 1e-7), top_p)
        same = op.kept(logits, temperature, top_k, nudged) == op.kept(logits, temperature, top_k, top_p)
        clear &= same.all(-1)
    return op.reference(*arguments), clear


def assert_equals_definition(*arguments) -> float:
    """On every instruction set, on every clear row; returns the share of clear rows."""
    want, clear = definition(*arguments)
    for isa in available_isas():
        with cpu_isa(isa):
            assert torch.equal(op.sample_rows(*arguments)[clear], want[clear]), isa
    return clear.double().mean().item()
