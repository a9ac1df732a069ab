import pytest
import torch

from sparrow_ext.ops import sample_rows as op

SHAPES = [(1, 8192, torch.float32), (26, 8192, torch.float32), (1, 152064, torch.bfloat16), (8, 152064, torch.bfloat16)]


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("spread", [0.5, 3.0])  # of the logits: a flat row (nothing to prune) and a usual one
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (50, None), (None, 0.95), (50, 0.95)])
@pytest.mark.parametrize(("nodes", "vocab", "dtype"), SHAPES)
def test_sample_rows(benchmark, nodes, vocab, dtype, top_k, top_p, spread, impl):
    benchmark.group = f"sample_rows N={nodes} V={vocab} {dtype} top_k={top_k} top_p={top_p} spread={spread}"
    logits = (torch.randn(1, nodes, vocab, generator=torch.Generator().manual_seed(0)) * spread).to(dtype)
    arguments = (
        logits,
        torch.tensor([0.8]),
        torch.tensor([1]),
        torch.arange(nodes)[None],
        None if top_k is None else torch.tensor([top_k], dtype=torch.int32),
        None if top_p is None else torch.tensor([top_p]),
    )
    rounds = 4 if vocab > 10_000 else 15
    benchmark.pedantic(op.sample_rows if impl == "sparrow" else op.eager, arguments, rounds=rounds, warmup_rounds=1)
