"""A conversation in a file: what was said, its videos, and the rows that ran (safetensors)."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparrow.decoding.clips import Clip, Turn
from sparrow.decoding.prefixes import Head, Owner, Prefix
from sparrow.drafters.protocol import Drafter
from sparrow.files import PathLike, write_tensors
from sparrow.targets.adapter import Target
from sparrow.video import VideoInfo

FORMAT = 1
ABOUT = "sparrow"  # the entry of the file's metadata


def write(
    path: PathLike, target: Target, drafter: Drafter[Any], turns: Sequence[Turn], waiting: Sequence[Clip],
    system: str | None, prefix: Prefix | None,
) -> None:  # fmt: skip
    """Writes a conversation. prefix: its rows, if any ran."""
    clips = [clip for turn in turns for clip in turn.clips] + list(waiting)
    about: dict[str, Any] = {
        "format": FORMAT,
        "made_for": _made_for(target, drafter),
        "system": system,
        "turns": [{"text": turn.text, "clips": len(turn.clips), "answer": turn.answer} for turn in turns],
        "clips": [dataclasses.asdict(clip.info) for clip in clips],
        "media": [clip.medium for clip in clips],
    }
    tensors: dict[str, Tensor] = {f"clip.{i}": clip.tensor() for i, clip in enumerate(clips)}
    if prefix is not None:
        about["visuals"] = [[first, end, name.hex()] for first, end, name in prefix.head.visuals]
        tensors |= {"ids": prefix.head.ids, "positions": prefix.head.positions, "gone": prefix.gone}
        tensors["rows"] = prefix.cache.buffer[..., : prefix.rows(len(prefix.head)), :]
        tensors |= {f"draft.{name}": value for name, value in prefix.draft.items()}
        tensors |= {f"end.{place}": state for place, state in prefix.ends.items()}
    write_tensors(path, tensors, {ABOUT: json.dumps(about)})


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a file holds."""

    turns: list[Turn]
    waiting: list[Clip]
    system: str | None
    prefix: Prefix | None


def read(path: PathLike, target: Target, drafter: Drafter[Any]) -> Saved:
    """Reads a conversation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or was made with another target or drafter, which is said.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if about["format"] != FORMAT:
            raise ValueError(f"{path} has format {about['format']}, this version of sparrow reads {FORMAT}")
        _check_made_for(path, about["made_for"], _made_for(target, drafter))
        clips = [
            Clip.of(tensors[f"clip.{i}"].numpy(), _info(info), medium)
            for i, (info, medium) in enumerate(zip(about["clips"], about["media"], strict=True))
        ]
        turns, at = [], 0
        for turn in about["turns"]:
            turns.append(Turn(turn["text"], tuple(clips[at : at + turn["clips"]]), turn["answer"]))
            at += turn["clips"]
        return Saved(turns, clips[at:], about["system"], _prefix(about, tensors, target, drafter))
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no saved conversation, or cut short: {type(error).__name__}: {error}") from error


def _prefix(about: dict[str, Any], tensors: dict[str, Tensor], target: Target, drafter: Drafter[Any]) -> Prefix | None:
    if "ids" not in tensors:
        return None
    rows, named = tensors["rows"].to(target.device), {}
    for kind in ("draft", "end"):
        found = {name: value for name, value in tensors.items() if name.startswith(f"{kind}.")}
        named[kind] = {name.removeprefix(f"{kind}."): value.to(target.device) for name, value in found.items()}
    visuals = tuple((first, end, bytes.fromhex(name)) for first, end, name in about["visuals"])
    head = Head(tensors["ids"], tensors["positions"], visuals)
    ends = {int(place): state for place, state in named["end"].items()}
    cache = target.new_cache(rows.shape[-2], (rows, rows.new_zeros(1).int()))
    cache.set_length(rows.shape[-2])
    prefix = Prefix(Owner.of(target, drafter), head, cache, ends, named["draft"], gone=tensors["gone"])
    have, want = (len(rows), rows.shape[-2], head.positions.shape[-1]), (target.num_layers, prefix.rows(len(head)))
    if have != (*want, len(head)):
        raise KeyError(f"rows {list(rows.shape)} of {len(head)} tokens")
    return prefix


def _made_for(target: Target, drafter: Drafter[Any]) -> dict[str, Any]:
    dtype = str(target.embedding.dtype).removeprefix("torch.")
    return {"target": {**target.fingerprint(), "dtype": dtype}, "drafter": drafter.fingerprint()}


def _check_made_for(path: PathLike, was: dict[str, Any], now: dict[str, Any]) -> None:
    for part in ("target", "drafter"):
        if was[part] != now[part]:
            raise ValueError(f"{path} was made with another {part}: {was[part]}, this is {now[part]}")


def _info(values: dict[str, Any]) -> VideoInfo:
    return VideoInfo(**{**values, **{name: tuple(values[name]) for name in ("indices", "skipped")}})
