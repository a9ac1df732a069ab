"""What the parts of a prefill that are left out are worth: text rows only in the last layer, pieces, dropped video.

    python -m bench.prefill --save bench/results/prefill.json
    python -m bench.prefill --table bench/results/prefill.json

Seconds are CPU seconds of one thread (other programs may run), of `generate` with the clip's pixels made before: vision
tower, prefill, one token. Ratios are medians of ratios taken in turns. Memory is the peak of a process of its own, over
what it had with the pair loaded.
"""

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.measured import program
from bench.session import QUESTIONS, clip_of
from sparrow.cli.loading import load_drafter, load_target, quiet
from sparrow.decoding.generate import GenerateOutput, generate
from sparrow.drafters.text import NoDrafter, TextDrafter
from sparrow.miniature.shipped import pair
from sparrow.video import load_settings, prepare

LENGTHS = {"miniature": {1024: 3}, "smollm2": {256: 2}}  # visual tokens: turns
DROPS = {"miniature": (1024, (6, 7)), "smollm2": (256, (24,))}
NEW = {"miniature": 96, "smollm2": 16}
CLIPS = 2
PIECES = (4096, (None, 256))


class Pair:
    """The shipped pair, or SmolLM2 with plain decoding."""

    def __init__(self, name: str):
        self.name = name
        if name == "smollm2":
            from sparrow.smollm2 import fetch

            folder: Any = fetch.fetch()
        else:
            folder, drafter = pair()
        self.model, self.tokenizer = load_target(folder, "float32", torch.device("cpu"), False)
        self.drafter = load_drafter(str(drafter), self.model) if name == "miniature" else None
        self.settings = load_settings(folder)

    def inputs(self, length: int, number: int) -> dict[str, Any]:
        return prepare(self.settings, self.tokenizer, QUESTIONS[0], [clip_of(length, number)])

    def run(self, inputs: dict[str, Any], new: int = 1, **options: Any) -> tuple[float, GenerateOutput]:
        """CPU seconds, and what came of it."""
        begun = time.process_time()
        out = generate(self.model, self.drafter, **inputs, max_new_tokens=new, do_sample=False, tree="own", **options)
        return time.process_time() - begun, out


@contextlib.contextmanager
def every_row() -> Iterator[None]:
    """The last layer runs all rows inside."""
    kinds = (TextDrafter, NoDrafter)
    try:
        for kind in kinds:
            kind.text_states = False
        yield
    finally:
        for kind in kinds:
            kind.text_states = True


def ratio(turns: int, one: Callable[[], float], other: Callable[[], float]) -> dict[str, Any]:
    """Seconds of both by turns, and the median of other / one."""
    pairs = [(one(), other()) for _ in range(turns)]
    return {"seconds": pairs, "ratio": round(statistics.median(b / a for a, b in pairs), 4)}


def last_layer(made: Pair, length: int, turns: int) -> dict[str, Any]:
    """Prefill with the last layer on all rows, and on text rows."""
    inputs = made.inputs(length, 0)

    def whole() -> float:
        with every_row():
            return made.run(inputs)[0]

    whole()
    return {"target": made.name, "visual_tokens": length} | ratio(turns, whole, lambda: made.run(inputs)[0])


def dropped(made: Pair, length: int, layer: int) -> dict[str, Any]:
    """Prefill, rounds and tau with and without visual_drop_layer, over clips."""
    rows: list[dict[str, float]] = []
    for number in range(CLIPS):
        inputs, row = made.inputs(length, number), {}
        for name, options in (("exact", {}), ("dropped", {"visual_drop_layer": layer})):
            row[f"{name} prefill"] = made.run(inputs, **options)[0]
            seconds, out = made.run(inputs, NEW[made.name], eos_token_id=None, **options)
            row[f"{name} round"] = (seconds - row[f"{name} prefill"]) / out.stats.rounds
            row[f"{name} tau"] = out.stats.tau
        rows.append(row)
    of = {
        name: round(statistics.median(row[f"dropped {name}"] / row[f"exact {name}"] for row in rows), 4)
        for name in ("prefill", "round")
    }
    tau = {name: round(statistics.mean(row[f"{name} tau"] for row in rows), 3) for name in ("exact", "dropped")}
    return {"target": made.name, "visual_tokens": length, "layer": layer, "ratio": of, "tau": tau, "clips": rows}


def peak(length: int, chunk: int | None) -> dict[str, Any]:
    """In this process: CPU seconds, and bytes beyond what the loaded pair and the pixels take."""
    made = Pair("miniature")
    inputs = made.inputs(length, 0)
    made.run(made.inputs(64, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, out = made.run(inputs, prefill_chunk_size=chunk)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "visual_tokens": length, "chunk": chunk, "seconds": seconds, "peak_bytes": more * 1024,
        "cache_bytes": out.cache.buffer.nbytes, "token": int(out.sequences[0, -1]),
    }  # fmt: skip


def share_of_last_layer(vision: bool) -> float:
    """Of a 7B prefill's products, those that the last layer's visual rows save; 25,000 visual tokens, 50 of text.

    The shape of Qwen2.5-VL-7B: what attention adds in a layer is counted with it, keys and values and queries of the
    rows that are left out are still made.
    """
    n, visual, e, ffn, kv, layers, head = 25050, 25000, 3584, 18944, 512, 28, 152064 * 3584
    of_row = 2 * e * e + 2 * e * kv + 3 * e * ffn
    attention = n * n * e  # scores and values, the causal half of both
    whole = layers * (n * of_row + attention) + head
    if vision:  # 32 layers of 1280 over four patches per token, their attention in windows left out
        whole += 4 * visual * 32 * (4 * 1280**2 + 3 * 1280 * 3420)
    return (visual * (e * e + 3 * e * ffn) + attention * (visual / n)) / whole


def measure() -> dict[str, Any]:
    result: dict[str, Any] = {"last_layer": [], "dropped": [], "pieces": []}
    length, chunks = PIECES
    for chunk in chunks:
        command = [sys.executable, "-m", "bench.prefill", "--peak", str(length), str(chunk or 0)]
        result["pieces"].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(result["pieces"][-1], flush=True)
    if len({row["token"] for row in result["pieces"]}) != 1:
        raise AssertionError("pieces changed the first token")
    for name, lengths in LENGTHS.items():
        made = Pair(name)
        for visual, turns in lengths.items():
            result["last_layer"].append(last_layer(made, visual, turns))
            print(result["last_layer"][-1], flush=True)
        visual, layers = DROPS[name]
        for layer in layers:
            result["dropped"].append(dropped(made, visual, layer))
            print({k: v for k, v in result["dropped"][-1].items() if k != "clips"}, flush=True)
    shares = {
        name: round(share_of_last_layer(vision), 4) for name, vision in (("decoder", False), ("vision too", True))
    }
    return result | {"share_7b": shares}


def table(result: dict[str, Any]) -> str:
    """Markdown of all three."""
    lines = ["| target | visual tokens | last layer on text rows: time of the prompt |", "|---|---|---|"]
    lines += [f"| {r['target']} | {r['visual_tokens']} | {r['ratio']:.1%} |" for r in result["last_layer"]]
    first = result["pieces"][0]
    lines += [
        "",
        "| tokens at a time | CPU time of the prompt | peak memory beyond the pair | the cache |",
        "|---|---|---|---|",
    ]
    for row in result["pieces"]:
        mib = [f"{row[name] / 2**20:.0f} MiB" for name in ("peak_bytes", "cache_bytes")]
        lines.append(f"| {row['chunk'] or 'all'} | {row['seconds'] / first['seconds']:.0%} | {' | '.join(mib)} |")
    lines += ["", "| target | visual tokens | from layer | time of the prompt | time of a round | tau | tau, dropped |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in result["dropped"]:
        cells = [row["target"], row["visual_tokens"], row["layer"], *(f"{r:.0%}" for r in row["ratio"].values())]
        cells += ["-" if row["target"] == "smollm2" else f"{tau:.2f}" for tau in row["tau"].values()]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:  # a process of its own for each peak, see `measure`
        quiet()
        torch.set_num_threads(1)
        print(json.dumps(peak(int(sys.argv[2]), int(sys.argv[3]) or None)))
    else:
        program("bench.prefill", __doc__, {}, measure, table)
