"""Time to the first token of the questions of a conversation, on the shipped pair.

    python -m bench.session --save bench/results/session.json
    python -m bench.session --table bench/results/session.json

The first question brings the video along, as decoded frames; the second and third are about the same video. The time is
that from `Session.send` to the first token, everything in it: chat template, pixels, vision tower, prefill. "from
nothing" is the second question without a session: `prepare` and `generate` of the whole conversation. Each figure is
the median of several conversations; answers are compared with those from nothing, token for token.
"""

import statistics
import sys
import time

import torch

from bench.measured import program
from sparrow.cli.loading import load_drafter, load_target
from sparrow.decoding.generate import generate
from sparrow.decoding.prefixes import PrefixStore
from sparrow.decoding.session import Session
from sparrow.miniature.shipped import pair
from sparrow.miniature.world import sample
from sparrow.miniature.world.clips import FORMATS
from sparrow.progress import track
from sparrow.video import VideoInfo, load_settings, prepare

QUESTIONS = ("Describe the video in detail.", "How many shapes are there?", "What happens at the end?")
NEW = 32
BARS = {1024: 0.15, 4096: 0.05}


class First:
    """A streamer: seconds until the first token."""

    def __init__(self):
        self.begun, self.puts, self.seconds = time.perf_counter(), 0, 0.0

    def put(self, value):
        self.puts += 1
        if self.puts == 2:
            self.seconds = time.perf_counter() - self.begun

    def end(self):
        pass


def clip_of(length: int, number: int):
    """Frames and their clock, of a video of `length` visual tokens."""
    form = FORMATS[length][-1]
    clip = sample(number, form)
    n = len(clip.frames)
    return clip.frames, VideoInfo(n, clip.fps, tuple(range(n)), *clip.frames.shape[1:3])


def conversation(parts, length: int, number: int) -> dict[str, float]:
    """Seconds of each question, of the second from nothing, and of it with a prefix store."""
    model, drafter, settings, tokenizer = parts
    frames, info = clip_of(length, number)
    session, found = Session(model, drafter, settings, tokenizer, max_new_tokens=NEW), {}
    for name, text in zip(("first", "second", "third"), QUESTIONS, strict=True):
        stamp = First()
        reply = session.send(text, None if session.turns else (frames, info), streamer=stamp)
        found[name] = stamp.seconds
        if name == "second":
            answer, asked = reply.output.sequences, session.messages[:-1]
    stamp = First()
    inputs = prepare(settings, tokenizer, asked, [(frames, info)])
    fresh = generate(model, drafter, **inputs, max_new_tokens=NEW, streamer=stamp)
    found["second, from nothing"] = stamp.seconds
    if not torch.equal(fresh.sequences, answer):
        raise AssertionError(f"{length} visual tokens, clip {number}: the answers differ")
    store = PrefixStore(1 << 30)
    for text in QUESTIONS[:2]:
        stamp = First()
        inputs = prepare(settings, tokenizer, text, [(frames, info)])
        generate(model, drafter, **inputs, max_new_tokens=2, streamer=stamp, prefixes=store)
        found[f"store, {'first' if text == QUESTIONS[0] else 'second'}"] = stamp.seconds
    return {name: round(seconds, 5) for name, seconds in found.items()}


def measure(lengths: list[int], conversations: int) -> dict[str, list[dict[str, object]]]:
    """One row per length: the seconds of each conversation after one that is not counted, medians, and ratios."""
    target, drafter_folder = pair()
    model, tokenizer = load_target(target, "float32", torch.device("cpu"), False)
    parts = (model, load_drafter(str(drafter_folder), model), load_settings(target), tokenizer)
    rows: list[dict[str, object]] = []
    for length in lengths:
        runs = [conversation(parts, length, i) for i in track(range(conversations + 1), f"{length} visual tokens")][1:]
        median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        ratio = statistics.median(run["second"] / run["first"] for run in runs)
        of_store = statistics.median(run["store, second"] / run["store, first"] for run in runs)
        rows.append(
            {"visual_tokens": length, "runs": runs, "median": median, "second_of_first": round(ratio, 4),
             "store_second_of_first": round(of_store, 4), "bar": BARS.get(length)}
        )  # fmt: skip
    return {"rows": rows}


def table(result: dict) -> str:
    """The medians in milliseconds."""
    lines = [
        "| visual tokens | first question | second | third | second, from nothing | second / first | bar "
        "| prefix store: second / first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ms = [f"{1000 * row['median'][n]:.0f} ms" for n in ("first", "second", "third", "second, from nothing")]
        bar = "" if row["bar"] is None else f"{row['bar']:.0%}"
        ratios = [f"{row['second_of_first']:.1%}", bar, f"{row['store_second_of_first']:.1%}"]
        lines.append(f"| {row['visual_tokens']} | {' | '.join(ms + ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    options = {"lengths": {"type": int, "nargs": "+", "default": [256, 1024, 4096]}, "conversations": 7}
    rows = program("bench.session", __doc__, options, measure, table)["rows"]
    sys.exit(any(row["bar"] is not None and row["second_of_first"] > row["bar"] for row in rows))
