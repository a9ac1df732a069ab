"""GPU checks: every timed case against its floor and its peers."""

from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu_cases import cases as timed
from bench.gpu_measure import ceilings, floors, microseconds
from bench.gpu_peers import describe
from bench.gpu_work import Case as Timed
from bench.gpu_work import Sizes, Work
from bench.gpu_worker import LOST, Case, Place

COPIES = 28
SMALL = Sizes(hidden=256, vocab=1024, draft_vocab=512, layers=2, heads=14, kv_heads=2, head_dim=128, ffn=512)
ORDER = ("tree_attention", "hsr_project", "skinny_linear", "lm_head_topk", "draft_attention", "sample_rows")
TARGETS = {  # microseconds on an H200, or share of the floor: what we are after
    ("hsr_project", "M=1"): "<= 14.5 us", ("hsr_project", "M=8"): "<= 14.5 us", ("hsr_project", "M=16"): "<= 14.5 us",
    ("tree_attention", "prefix 25000, N=1"): "<= 15 us", ("tree_attention", "prefix 25000, N=8"): "<= 15.5 us",
    ("tree_attention", "prefix 25000, N=16"): "<= 17.5 us", ("tree_attention", "prefix 25000, N=32"): "<= 27 us",
    ("tree_attention", "prefix 25000, N=64"): "<= 53 us", ("draft_attention", "1536 rows, T=10"): "<= 6.5 us",
    ("kv_commit", "28 layers, path 4"): "<= 5 us", ("topk_lse", "10 x 152064"): "<= 5.5 us",
    ("lm_head_topk", "M=8 V=152064"): "<= 262 us", ("lm_head_topk", "M=8 V=32000"): "<= 58 us",
    ("sample_rows", "26 x 152064"): "<= 14 us", ("sample_rows", "26 x 152064, top-k 50 and top-p 0.9"): "<= 35 us",
}  # fmt: skip


def all_timed(place: Place) -> list[Timed]:
    """In order of value."""
    found = list(timed(SMALL, prefixes=(130,)) if place.small else timed(Sizes(), (25000, 1536, 512, 17000, 100000)))
    return sorted(found, key=lambda c: ORDER.index(c.op) if c.op in ORDER else len(ORDER))


def cases(place: Place) -> Iterator[Case]:
    rates: dict[str, Any] = {}

    def ceiling() -> dict[str, Any]:
        if not rates:
            rates.update(ceilings() if place.gpu else {"read_GB_per_s": 10.0, "bf16_TFLOP_per_s": 0.1})
        return rates

    yield Case("ceilings", ceiling)
    for one in all_timed(place):
        yield Case(f"{one.op}: {one.name}", lambda one=one: measure(one, ceiling(), place))


def measure(case: Timed, rates: dict[str, Any], place: Place) -> dict[str, Any]:
    """Our time, its floor and its share. Red where the result differs from the eager composition's."""
    work: Work = case.build(torch.device(place.device), 2 if place.small else COPIES)
    us = microseconds(work.ours)
    row: dict[str, Any] = {"us": us, "target": TARGETS.get((case.op, case.name), ""), **floors(work, rates, us)}
    row["says"] = f"{us:.2f} us, {row['share_of_floor']:.0%} of the floor {row['target']}"
    differs = work.disagreement("eager")
    assert differs is None, differs
    return row


def peer_times(case: Timed, place: Place) -> dict[str, Any]:
    """The peers' times. One that is missing, fails or computes something else is a fact; the eager one must work."""
    work: Work = case.build(torch.device(place.device), 2 if place.small else COPIES)
    times: dict[str, float] = {}
    missing = dict(work.missing)
    for name, calls in work.peers.items():
        if name in work.compiled:
            missing[name] = "needs torch.compile"
            continue
        try:
            differs = work.disagreement(name)
            if differs is None:
                times[name] = microseconds(calls, rounds=7, graph=name not in work.on_host)
        except Exception as error:
            if name == "eager" or LOST.search(f"{type(error).__name__}: {error}"):
                raise
            differs = describe(error)
        if differs is not None:
            missing[name] = differs
    return {"us": times, "missing": missing, "says": ", ".join(f"{k} {v:.1f} us" for k, v in times.items())}


def small(place: Place) -> None:
    """One call of every case at small sizes: what a sanitizer watches."""
    for case in timed(SMALL, prefixes=(130,)):
        case.build(torch.device(place.device), 1).ours[0]()
    if place.gpu:
        torch.cuda.synchronize()
