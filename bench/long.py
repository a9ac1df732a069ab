"""Long videos on the shipped pair: rounds over a filled cache, and one real prompt of 24,576 visual tokens.

    python -m bench.long --save bench/results/long.json

Rounds as in bench.round (least CPU seconds of each stage, drafting's ratios as medians of ratios taken in turns), with
the shipped weights; the cache is filled with noise, as no prompt is run. The real prompt is the first question of a
session, with the clip as decoded frames, then a second question; wall seconds, once.
"""

import resource
import time

import torch

from bench.measured import program
from bench.round import DRAFTS, Bench, draft_ratios, timed
from bench.session import QUESTIONS, First, clip_of
from sparrow.cli.loading import load_drafter, load_target
from sparrow.decoding.session import Session
from sparrow.drafters.text import TextDrafter
from sparrow.miniature.shipped import pair
from sparrow.targets.adapter import Target
from sparrow.tree import TreeConfig
from sparrow.video import load_settings

LENGTHS = (500, 6000, 25000, 100000)


@torch.no_grad()
def rounds_of(model, drafter, lengths: list[int], rounds: int) -> dict[str, object]:
    """Seconds of each stage and drafting's ratios, by visual length."""
    bench = Bench(Target(model), TextDrafter(drafter), TreeConfig.parse(drafter.config.tree))
    with bench.target.verifying():
        states = {length: bench.state(length, 4.37) for length in lengths}
        seconds = timed(bench, states, rounds)
        ratios = draft_ratios(bench, states, DRAFTS * rounds)
    each = {length: state.cache.buffer.nbytes // state.cache.capacity for length, state in states.items()}
    return {"seconds": seconds, "draft_ratios": ratios, "cache_bytes_per_token": each[lengths[0]]}


def conversation(parts, length: int) -> dict[str, object]:
    """Two questions about a real video of so many visual tokens."""
    session, found = Session(*parts, max_new_tokens=64), {}
    frames = clip_of(length, 0)
    for name, text in zip(("first", "second"), QUESTIONS[:2], strict=True):
        stamp, begun = First(), time.perf_counter()
        reply = session.send(text, None if session.turns else frames, streamer=stamp)
        s = reply.stats
        found[name] = {
            "prompt_tokens": s.prompt_tokens, "visual_tokens": s.visual_tokens, "reused_tokens": s.reused_tokens,
            "first_token_seconds": stamp.seconds, "seconds": time.perf_counter() - begun, "new_tokens": s.new_tokens,
            "tau": s.tau if s.rounds else None, "decode_seconds": s.decode_seconds,
        }  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**found, "memory": session.memory, "peak_resident_bytes": peak}


def measure(lengths: list[int], rounds: int, prompt: int) -> dict[str, object]:
    """Both parts; prompt: visual tokens of the real one."""
    target, drafter_folder = pair()
    model, tokenizer = load_target(target, "float32", torch.device("cpu"), False)
    drafter = load_drafter(str(drafter_folder), model)
    found = rounds_of(model, drafter, lengths, rounds)
    return {"rounds": found, "prompt": conversation((model, drafter, load_settings(target), tokenizer), prompt)}


def table(result: dict) -> str:
    """Everything, a line each."""
    return "\n".join(f"{name}: {value}" for part in ("rounds", "prompt") for name, value in result[part].items())


if __name__ == "__main__":
    options = {"lengths": {"type": int, "nargs": "+", "default": LENGTHS}, "rounds": 20, "prompt": 24576}
    program("bench.long", __doc__, options, measure, table)
