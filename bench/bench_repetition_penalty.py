import pytest
import torch

from sparrow_ext.ops import repetition_penalty as op
from sparrow_ext.ops.tree_mask import tree_mask
from tests.ops.checks import random_tree


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("seen_tokens", [0, 500, 4000])
@pytest.mark.parametrize(("nodes", "vocab"), [(1, 8192), (26, 8192), (1, 152064), (26, 152064)])
def test_repetition_penalty(benchmark, nodes, vocab, seen_tokens, impl):
    benchmark.group = f"repetition_penalty N={nodes} V={vocab} seen={seen_tokens}"
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, nodes, vocab, generator=g)
    tokens = torch.randint(0, vocab, (1, nodes), generator=g)
    anc = tree_mask(random_tree(nodes, g)[None])[0]
    seen = torch.zeros(1, vocab, dtype=torch.bool)
    seen[0, torch.randperm(vocab, generator=g)[:seen_tokens]] = True
    # In place: repeated rounds work on shrinking logits, the time does not depend on their values.
    benchmark.pedantic(
        op.repetition_penalty if impl == "sparrow" else op.eager,
        (logits, tokens, anc, seen, torch.tensor([1.0001])),
        rounds=20,
        warmup_rounds=2,
    )
