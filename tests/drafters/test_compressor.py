"""ViSpec's compressor by itself; its rows in the drafter's cache: tests/drafters/test_visual.py."""

import pytest
import torch

from sparrow.drafters.compressor import Compressor


def test_an_untrained_global_vector_changes_nothing():
    made, generator = Compressor(16, 2, 8, bias=True), torch.Generator().manual_seed(0)
    hidden, summary = torch.randn(2, 5, 16, generator=generator), torch.randn(2, 1, 16, generator=generator)
    assert torch.equal(made.fuse(hidden, summary), hidden)
    with pytest.raises(ValueError, match="needs the video's global vector"):
        made.fuse(hidden, None)
