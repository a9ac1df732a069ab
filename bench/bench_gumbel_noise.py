import pytest
import torch

from sparrow_ext.ops import gumbel_noise as op


@pytest.mark.parametrize("impl", ["sparrow", "eager"])
@pytest.mark.parametrize("mapped", [False, True], ids=["all", "trimmed"])
@pytest.mark.parametrize("vocab", [8192, 152064])
def test_gumbel_noise(benchmark, vocab, mapped, impl):
    """Of five levels; eager draws noise that no seed, position and token name."""
    benchmark.group = f"gumbel_noise N=5 V={vocab}{' of a trimmed vocabulary' if mapped else ''}"
    id_map = torch.randperm(4 * vocab, generator=torch.Generator().manual_seed(0))[:vocab] if mapped else None
    arguments = (torch.tensor([1]), torch.arange(5)[None], vocab, id_map)
    benchmark.pedantic(op.gumbel_noise if impl == "sparrow" else op.eager, arguments, rounds=15, warmup_rounds=1)
