"""A page with everything on it that could break one: texts that are HTML, parts of characters, three lanes, a clip."""

import os

import numpy as np
import torch

import sparrow
from sparrow.cli.page import Shown
from sparrow.drafters.recorded import Recorder
from sparrow.evaluation.systems import Run
from sparrow.video import VideoInfo
from tests.pairs import miniature_pair

PROMPT = "<b>What</b> moves & why? </script><script>alert(1)</script>"
NASTY = ("</script><script>alert(2)</script>", "<!--<script>", "\u2028\n", "<img src=x onerror=alert(3)>", "日")
NEW = 40


class Nasty:
    """A tokenizer whose texts are markup, blanks, and bytes of characters."""

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=True):
        parts = [NASTY[i % 6].encode() if i % 6 < len(NASTY) else (b"\xc3", b"\xa9")[i // 6 % 2] for i in ids]
        return b" ".join(parts).decode(errors="replace")


def browsers() -> bool:
    """Whether tests with a browser are wanted (make test-page)."""
    return os.environ.get("SPARROW_PAGE") == "1"


def shown(drafts: bool = True, lanes: bool = True, **options) -> Shown:
    """A real generation of a random pair, with a clip that it did not see, and lanes that were not run."""
    model, _, drafter = miniature_pair()
    recorder = Recorder(drafter if drafts else None)
    ids = torch.arange(5, 12)[None]
    options = {"max_new_tokens": NEW, "eos_token_id": None, "tree": "own" if drafts else None, **options}
    out = sparrow.generate(model, recorder, input_ids=ids, on_round=recorder.on_round, **options)
    tokens = out.sequences[0, ids.shape[1] :].tolist()
    frames = np.random.default_rng(0).integers(0, 256, (40, 50, 301, 3), dtype=np.uint8)
    info = VideoInfo(80, 10.0, tuple(range(0, 80, 2)), 50, 301)
    lane = "sparrow" if drafts else "plain"
    runs = {name: [fake_run(tokens, step)] * 3 for name, step in (("transformers", 0.02), ("plain", 0.02))}
    runs["sparrow"] = [fake_run(tokens, 0.005)] * 3
    return Shown(
        PROMPT, [("<clip>.mp4", (frames, info))], out, recorder, lane, runs if lanes else {}, "it was not asked for",
        "identical" if lanes else "", {"target": "<i>random</i>"}, [("<image>.png", frames[0, :20, :60])],
    )  # fmt: skip


def fake_run(tokens: list[int], step: float) -> Run:
    """A run whose tokens come one by one, `step` seconds apart."""
    arrivals = [(step * (at + 1), 1) for at in range(len(tokens))]
    seconds = step * len(tokens)
    return Run(tokens, seconds, seconds - step, len(tokens) - 1, [], {}, arrivals)
