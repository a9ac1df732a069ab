"""The GPU bench's cases run and agree with their eager peers; here small, on the CPU."""

import pytest
import torch

from bench.gpu_cases import cases
from bench.gpu_measure import operators
from bench.gpu_work import Sizes, Work

SMALL = Sizes(hidden=64, vocab=512, draft_vocab=256, layers=3, heads=4, kv_heads=2, head_dim=64, ffn=96)
ALL = list(cases(SMALL, prefixes=(70,)))


@pytest.mark.parametrize("case", ALL, ids=lambda c: f"{c.op} {c.name}")
def test_case_agrees_with_its_peers(case):
    torch.manual_seed(0)
    work = case.build(torch.device("cpu"), 2)
    assert work.bytes > 0 and work.flops >= 0 and work.ours and "eager" in work.peers
    assert work.on_host | work.compiled <= set(work.peers)
    for name, calls in work.peers.items():
        calls[-1]()
        assert work.disagreement(name) is None


def test_every_operator_is_among_them():
    assert {case.op for case in ALL} == set(operators())


def test_a_peer_that_computes_something_else_is_named():
    x = torch.ones(2, 3)
    work = Work([lambda: (x, x)], 1, peers={"right": [x.flatten], "wrong": [lambda: (x, x * 2)]})
    assert work.disagreement("right") is None
    assert work.disagreement("wrong") == "its result differs from ours by 1 (allowed: 0.05)"
    work.unpack["wrong"] = lambda pair: pair[0]
    assert work.disagreement("wrong") is None


def test_integers_count_where_there_is_nothing_else_and_nan_is_no_agreement():
    ids = torch.tensor([1, 2])
    work = Work([lambda: (ids,)], 1, peers={"same": [ids.clone], "other": [lambda: ids + 1]})
    assert work.disagreement("same") is None and work.disagreement("other") is not None
    with_floats = Work([lambda: (ids.float(), ids)], 1, peers={"p": [lambda: (ids.float(), ids + 1)]})
    assert with_floats.disagreement("p") is None
    with_floats.peers["p"] = [lambda: (ids * torch.nan, ids)]
    assert with_floats.disagreement("p") is not None
