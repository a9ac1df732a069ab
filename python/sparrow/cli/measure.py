"""Speed side by side, the same for every command that prints one: in turns, after a warm-up, medians, same threads."""

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sparrow.evaluation.systems import Run, System
from sparrow.evaluation.systems import run as run_once
from sparrow.progress import Progress

RUNS = 3
Runs = dict[str, list[Run]]  # by system


def measure(systems: Sequence[System], model, drafter, inputs: dict[str, Any], options: dict[str, Any]) -> Runs:
    """RUNS runs of each system on one prompt, in turns, after one that is not counted.

    Args:
        systems: what runs; `drafter` is that of the ones of kind "sparrow".
        inputs, options: of generate, greedy.
    """
    runs: Runs = {s.name: [] for s in systems}
    with Progress("measuring", (RUNS + 1) * len(systems), "runs") as progress:
        for turn in range(RUNS + 1):
            for system in systems:
                own = drafter if system.kind == "sparrow" else None
                run = run_once(system, model, own, inputs, options, seed=0)
                runs[system.name] += [run] if turn else []
                progress.advance()
    return runs


def decode_rate(run: Run) -> float:
    """Tokens per second from the first token on; NaN where none follows it."""
    return run.decode_tokens / run.decode_seconds if run.decode_tokens and run.decode_seconds else float("nan")


def whole_rate(run: Run) -> float:
    """Tokens per second of the whole call, prefill included."""
    return len(run.tokens) / run.seconds


def speed_up(ours: Sequence[Run], theirs: Sequence[Run], rate: Callable[[Run], float]) -> str:
    """Median over median; "~" where the turns do not agree which of the two is faster: then neither is."""
    a, b = [rate(r) for r in ours], [rate(r) for r in theirs]
    if any(map(math.isnan, (*a, *b))):
        return "-"
    agree = len({x > y for x, y in zip(a, b, strict=True)}) == 1
    return f"{'' if agree else '~'}{statistics.median(a) / statistics.median(b):.2f}x"


def table(runs: Runs) -> Table:
    """One row per system: tokens per second, and speed-ups over transformers' generate and over our plain loop."""
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    title = f"speed-up: median of {RUNS} runs each, in turns, {threads}; overall: prompt included"
    shown = Table(box=SIMPLE_HEAD, title=title, title_justify="left", padding=0)
    shown.add_column("system", no_wrap=True)
    for what in ("decoding", "overall"):
        for column in (f"{what}\ntokens/s", "over\ntransformers", "over\nplain loop"):
            shown.add_column(column, justify="right", no_wrap=True)
    for name, own in runs.items():
        row = []
        for rate in (decode_rate, whole_rate):
            median = statistics.median(map(rate, own))
            row.append("-" if math.isnan(median) else f"{median:.1f}")
            others = [other for other in ("transformers", "plain") if name not in ("transformers", other)]
            row += [speed_up(own, runs[other], rate) if other in others else "" for other in ("transformers", "plain")]
        shown.add_row("plain loop" if name == "plain" else name, *row)
    if any("~" in str(cell) for column in shown.columns for cell in column.cells):
        shown.caption, shown.caption_justify = (
            "~ the runs differ in which of the two is faster: no real difference",
            "left",
        )
    return shown


def same(runs: Runs) -> bool:
    """Every run gave the tokens of transformers' first."""
    return all(r.tokens == runs["transformers"][0].tokens for done in runs.values() for r in done)


def verdict(ours: Sequence[int], runs: Runs) -> str:
    """One line: whether all outputs are the same, both lengths, both hashes."""
    reference = runs["transformers"][0].tokens
    hashes = [hashlib.sha256(str(list(tokens)).encode()).hexdigest()[:16] for tokens in (ours, reference)]
    lengths = f"tokens {len(ours)} and {len(reference)}"
    return (
        f"identical to plain decoding: {'yes' if same(runs) else 'no'} ({lengths}, SHA-256 {hashes[0]} and {hashes[1]})"
    )
