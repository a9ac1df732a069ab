"""The GPU bench's cases run and agree with their eager peers; here small, on the CPU."""

import pytest
import torch

from bench.gpu_cases import Sizes, cases

SMALL = Sizes(hidden=64, vocab=512, draft_vocab=256, layers=3, heads=4, kv_heads=2, head_dim=64)
ALL = list(cases(SMALL, prefixes=(70,)))


@pytest.mark.parametrize("case", ALL, ids=lambda c: f"{c.op} {c.name}")
def test_case_agrees_with_its_peers(case):
    torch.manual_seed(0)
    work = case.build(torch.device("cpu"), 2)
    assert work.bytes > 0 and work.flops >= 0 and work.ours and work.peers
    ours = work.ours[0]()
    for calls in work.peers.values():
        theirs = calls[0]()
        if case.op in ("sample_rows", "kv_commit"):  # other noise; in place
            continue
        for a, b in zip(as_tuple(ours), as_tuple(theirs), strict=False):
            if a.is_floating_point():
                torch.testing.assert_close(a.float(), b.float(), atol=0.05, rtol=0.05)
            elif case.op == "tree_accept":
                assert torch.equal(a, b)


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)
