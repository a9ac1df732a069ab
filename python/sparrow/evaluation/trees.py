"""The fastest tree at a visual length: tokens per round from replay, the round's cost from live runs, on dev clips."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sparrow.drafters.network import SparrowDrafter
from sparrow.evaluation import systems as one
from sparrow.evaluation.questions import Question
from sparrow.evaluation.systems import System
from sparrow.evaluation.tape import Tape, replay
from sparrow.tree import TreeConfig

CANDIDATES = ("4-4-1", "6-6-1", "8-8-1", "12-12-1", "8-4-2", "12-6-2", "16-8-2", "16-6-4", "24-12-2", "25-5-8")
CLIPS, TIMED = 12, 2


def choose(
    model: Any, drafter: SparrowDrafter, of: System, asked: Sequence[Question], tapes: Sequence[Tape], options: dict,
    seed: int, clock: str, tell: Callable[[str], None] = lambda tree: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """All candidates, the fastest first: {"tree", "tau", "round_ms", "tokens_per_second"}.

    Args:
        drafter: bound to the model; of: the system that gets the tree.
        asked, tapes: dev clips and their recorded runs; tau is over all, a round's time over the first TIMED.
        options, seed, clock: see systems.run.
        tell: called with each tree before it is measured.
    """
    rows = []
    for tree in CANDIDATES:
        tell(tree)
        emitted = [replay(tape, drafter, TreeConfig.parse(tree)) for tape in tapes]
        tau = sum(map(sum, emitted)) / max(1, sum(map(len, emitted)))
        system = replace(of, tree=tree)
        seconds, rounds = 0.0, 0
        for question in asked[:TIMED]:
            runs = [one.run(system, model, drafter, question.inputs, options, seed, clock) for _ in range(3)]
            seconds += min(run.decode_seconds for run in runs[1:])  # the first one warms up
            rounds += len(runs[0].emitted)
        cost = seconds / max(1, rounds)
        rows.append({
            "tree": tree, "tau": round(tau, 4), "round_ms": round(1e3 * cost, 4),
            "tokens_per_second": round(tau / cost, 2) if cost else 0.0,
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["tokens_per_second"])
