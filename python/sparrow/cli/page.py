"""`--report`: a generation as one HTML page that needs no other file and no network (assets/page.html)."""

import base64
import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from sparrow.cli.measure import RUNS, Runs, decode_rate, whole_rate
from sparrow.cli.pieces import text_after, texts_of
from sparrow.decoding.generate import GenerateOutput
from sparrow.decoding.stats import DecodeStats
from sparrow.drafters.recorded import Recorder, Round
from sparrow.evaluation.systems import Run
from sparrow.files import write_text
from sparrow.provenance import provenance
from sparrow.video import VideoInfo

TEMPLATE = pathlib.Path(__file__).parents[1] / "assets" / "page.html"
DATA = "__DATA__"
LANES = {"transformers": "transformers", "plain": "plain loop", "sparrow": "sparrow", "SpecVLM": "SpecVLM"}
FRAMES, SIDE, QUALITY = 32, 192, 4  # of a clip on the page: at most so many, so large; MPEG's quantiser
Clip = tuple[np.ndarray, VideoInfo]


@dataclass(frozen=True)
class Shown:
    """What a page is about.

    Attributes:
        question: the prompt; clips: (name, frames and where they lie) of each video, as the model got them.
        images: (name, uint8 [H, W, 3]) of each image, before it was resized for the model.
        output: what generate returned; recorder: what it drafted by.
        lane: which of LANES that was.
        runs: measured runs by system; empty = none were asked for, `why_not` says so.
        verdict: a sentence on identity, where it was checked.
        model: what was run: names to words.
    """

    question: str
    clips: Sequence[tuple[str, Clip]]
    output: GenerateOutput
    recorder: Recorder
    lane: str
    runs: Runs
    why_not: str
    verdict: str
    model: dict[str, str]
    images: Sequence[tuple[str, np.ndarray]] = ()


def write_page(file: str | pathlib.Path, shown: Shown, tokenizer: Any, command: str) -> None:
    """Writes the page; command: how it was made."""
    write_text(file, page(page_data(shown, tokenizer, command)))


def page(data: dict[str, Any]) -> str:
    """The template with its data. No "<" of a text reaches the HTML: JSON writes it as an escape."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    before, after = TEMPLATE.read_text(encoding="utf-8").split(DATA)
    return before + text.replace("<", "\\u003c") + after


def page_data(shown: Shown, tokenizer: Any, command: str) -> dict[str, Any]:
    """All that the page shows, ready for JSON."""
    stats, rounds = shown.output.stats, shown.recorder.rounds()
    tokens = shown.output.sequences[0, stats.prompt_tokens :].tolist()
    return {
        "question": shown.question,
        "clips": [*(_image(*image) for image in shown.images), *(_clip(name, *clip) for name, clip in shown.clips)],
        "tokens": _tokens(texts_of(tokenizer, tokens), rounds),
        "rounds": [_round(r, tokenizer) for r in rounds],
        "race": _race(shown, rounds, tokens, tokenizer),
        "depths": _depths(stats),
        "figures": _figures(stats) | shown.model,
        "verdict": shown.verdict,
        "made": provenance(command),
    }


def _tokens(texts: list[str], rounds: list[Round]) -> list[dict[str, Any]]:
    """Text and kind of each token: first (drawn from the prompt's pass), accepted (drafted), bonus (the target's)."""
    kinds = [("first", -1)]
    for number, r in enumerate(rounds):
        kinds += [("accepted" if at < r.accepted else "bonus", number) for at in range(len(r.emitted))]
    return [{"text": t, "kind": kind, "round": n} for t, (kind, n) in zip(texts, kinds, strict=True)]


def _round(r: Round, tokenizer: Any) -> dict[str, Any]:
    texts = [text_after(tokenizer, r.tokens[max(up, 0)], t) for t, up in zip(r.tokens, r.parent, strict=True)]
    texts[0] = texts_of(tokenizer, r.tokens[:1])[0]
    ends = r.path[-1] if r.path else 0
    return {
        "texts": texts,
        "parent": r.parent,
        "probability": r.probability and [float(f"{p:.4g}") for p in r.probability],
        "path": r.path,
        "bonus": text_after(tokenizer, r.tokens[ends], r.emitted[-1]) if len(r.emitted) > len(r.path) else None,
        "seconds": round(r.seconds, 6),
    }


def _race(shown: Shown, rounds: list[Round], tokens: list[int], tokenizer: Any) -> list[dict[str, Any]]:
    """A lane per system: when which number of tokens came, in seconds from the call on."""
    names = list(dict.fromkeys(["transformers", "plain", *shown.runs, shown.lane]))
    return [_lane(name, shown, rounds, tokens, tokenizer) for name in names if name in LANES]


def _lane(name: str, shown: Shown, rounds: list[Round], tokens: list[int], tokenizer: Any) -> dict[str, Any]:
    lane: dict[str, Any] = {"name": LANES[name], "ours": name == shown.lane}
    if runs := shown.runs.get(name):
        run = _median(runs)
        own = {} if run.tokens == tokens else {"texts": texts_of(tokenizer, run.tokens)}
        arrivals = [[round(s, 6), n] for s, n in run.arrivals]
        note = f"the median of {RUNS} runs in turns"
        return lane | own | {"arrivals": arrivals, "note": note, **_rates(run)}
    if name != shown.lane:
        return lane | {"arrivals": [], "note": f"not run: {shown.why_not}"}
    stats = shown.output.stats
    at, arrivals = stats.seconds["prefill"], [[round(stats.seconds["prefill"], 6), 1]]
    for r in rounds:
        at += r.seconds
        arrivals.append([round(at, 6), len(r.emitted)])
    rate = (len(tokens) - 1) / (at - arrivals[0][0]) if rounds else None
    note = "the one run of this page, its rounds recorded and timed one by one, without the printing"
    return lane | {"arrivals": arrivals, "note": note, "decode": rate, "whole": len(tokens) / at}


def _median(runs: list[Run]) -> Run:
    middle = statistics.median_low(r.seconds for r in runs)
    return next(r for r in runs if r.seconds == middle)


def _rates(run: Run) -> dict[str, float | None]:
    rate = decode_rate(run)
    return {"decode": None if math.isnan(rate) else rate, "whole": whole_rate(run)}


def _depths(stats: DecodeStats) -> list[dict[str, Any]]:
    """Of the rounds whose path reached the depth above, the share that went on."""
    reached = [sum(n >= d for n in stats.accepted) for d in range(stats.depth + 1)]
    return [{"depth": d, "of": reached[d - 1], "went": reached[d]} for d in range(1, stats.depth + 1) if reached[d - 1]]


def _figures(stats: DecodeStats) -> dict[str, str]:
    rows = {"prompt": f"{stats.prompt_tokens} tokens, {stats.visual_tokens} of them visual"}
    rows["new tokens"] = f"{stats.new_tokens} tokens in {stats.rounds} rounds"
    if stats.rounds:
        rows["tau"] = f"{stats.tau:.2f} tokens per round"
    return rows | {"tree": stats.tree}


def _clip(name: str, frames: np.ndarray, info: VideoInfo) -> dict[str, Any]:
    """At most FRAMES of the frames that the model got, evenly spread."""
    count = len(frames)
    kept = [at * count // FRAMES for at in range(FRAMES)] if count > FRAMES else range(count)
    return {
        "name": name,
        "frames": [_picture(frames[at]) for at in kept],
        "seconds": None if info.fps is None else [round(info.indices[at] / info.fps, 2) for at in kept],
        "about": f"{len(kept)} of the {count} frames the model got, of {info.total_frames} in the clip",
    }


def _image(name: str, image: np.ndarray) -> dict[str, Any]:
    """As a clip of one frame."""
    about = f"{image.shape[1]} x {image.shape[0]} pixels"
    return {"name": name, "frames": [_picture(image)], "seconds": None, "about": about}


def _picture(frame: np.ndarray) -> str:
    """A JPEG as a data URI; frame: uint8 [H, W, 3]."""
    height, width = frame.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    codec: Any = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = *size, "yuvj444p", Fraction(1, 25)
    codec.qmin = codec.qmax = QUALITY
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(*size, "yuvj444p", interpolation="AREA")
    data = b"".join(bytes(packet) for part in (picture, None) for packet in codec.encode(part))
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def check_place(option: str, file: str | None) -> None:
    """What can be said of a file to write before anything is measured.

    Raises:
        FileNotFoundError: its folder is not there. ValueError: it is a folder itself.
    """
    if file is None:
        return
    if not pathlib.Path(file).absolute().parent.is_dir():
        raise FileNotFoundError(f"{option}: no such folder: {pathlib.Path(file).parent}")
    if pathlib.Path(file).is_dir():
        raise ValueError(f"{option} must be a file, got the folder {file}")
