"""A conversation about videos and images, of which every turn runs its new tokens only.

What decides is the whole conversation, rendered anew in each turn: as far as its tokens are those that ran, their rows
are taken over. So the answers are those of `generate` with the whole conversation, whatever a chat template does with
earlier turns, and taking back a turn is forgetting it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparrow.decoding import saved
from sparrow.decoding.clips import Clip, Turn, as_messages, load_clips, load_images
from sparrow.decoding.generate import GenerateOutput, enter, generate
from sparrow.decoding.prefixes import Head, Owner, Prefix
from sparrow.decoding.reuse import check_resumes
from sparrow.decoding.stats import DecodeStats
from sparrow.drafters.protocol import EntersLoop
from sparrow.drafters.text import NoDrafter
from sparrow.files import PathLike
from sparrow.targets.adapter import Target
from sparrow.targets.pixels import Visual
from sparrow.video import prepare
from sparrow.video.load import Source


@dataclass(frozen=True)
class Reply:
    """What Session.send returns.

    Attributes:
        text: the answer.
        output: as of `generate`: the whole conversation's tokens, and statistics. Its cache is the session's own, in
            which the next turn goes on: look at it before, and change nothing.
    """

    text: str
    output: GenerateOutput

    @property
    def stats(self) -> DecodeStats:
        return self.output.stats


@dataclass
class Kept:
    """The rows of the conversation so far: Prefixes of a single sequence, in whose cache the next run goes on.

    Attributes:
        clips: the videos of the conversation as it is now.
        prefix: what ran.
    """

    clips: Sequence[Clip] = ()
    prefix: Prefix | None = None
    in_place: bool = True

    def names(self, visuals: Sequence[Visual]) -> list[bytes]:
        """The clips' names, with a number where one is several pictures for the target (InternVL)."""
        videos = [visual for visual in visuals if "pixel_values_videos" in visual.inputs]
        clips = [clip for clip in self.clips if clip.medium == "video"]
        if not videos and len(clips) == len(self.clips):
            videos = list(visuals)
        each, rest = divmod(len(videos), max(len(clips), 1))
        known = [] if rest else [clip.name + str(i).encode() for clip in clips for i in range(each)]
        of_clips = iter(known if len(known) == len(videos) else [visual.digest() for visual in videos])
        # an image may be any number of pictures, and LLaVA-OneVision takes several of them for one
        ours = {id(visual) for visual in videos}
        return [next(of_clips) if id(visual) in ours else visual.digest() for visual in visuals]

    def find(self, owner: Owner, head: Head) -> Prefix | None:
        """What is common; the rest is given up, as the run writes over it."""
        found, self.prefix = self.prefix, None
        if found is not None and found.owner.is_also(owner):
            self.prefix = found.cut(found.head.common(head, len(head)))
        return self.prefix

    def keep(self, prefix: Prefix) -> None:
        """See Prefixes."""
        self.prefix = prefix

    def drop(self, target: Target, window: int) -> None:
        """Drops the oldest rows of visual tokens that are more than `window`."""
        prefix = self.prefix
        if prefix is None:
            return
        ids = torch.where(_within(prefix.head), prefix.head.ids, -1).to(target.device)
        visual = (~target.is_text(ids)).nonzero()[:, 0].cpu()
        visual = visual[~torch.isin(visual, prefix.gone)]
        if len(visual) > window:
            drop = visual[: len(visual) - window]
            prefix.cache.drop(drop - torch.searchsorted(prefix.gone, drop))
            self.prefix = replace(prefix, gone=torch.cat([prefix.gone, drop]).sort().values)


def _within(head: Head) -> Tensor:
    """bool [N]: the places of videos and images; a visual token's id elsewhere was generated, and is text."""
    places = torch.arange(len(head))
    inside = torch.zeros(len(head), dtype=torch.bool)
    for first, end, _ in head.visuals:
        inside |= (places >= first) & (places < end)
    return inside


class Session:
    """A conversation.

    Args:
        model, drafter: as of `generate`. Not every drafter can go on from kept rows: a SparrowDrafter of text rows,
            SpecVLM and None can.
        settings, tokenizer: as of `sparrow.video.prepare`.
        system: the system prompt; None = the chat template's own.
        lossy_window: visual tokens that stay visible: after each run the target's oldest rows of videos beyond so many
            are dropped from its cache. Bounds memory and time of a live video, and changes the answers: they are no
            longer those of the whole conversation. None (the default) = all stay.
        options: of every turn, as of `generate`: max_new_tokens, do_sample, temperature, seed, tree, ...

    Attributes:
        turns: what was said so far.

    Raises:
        ValueError: a model or drafter that cannot be used.
    """

    def __init__(
        self,
        model,
        drafter: EntersLoop | None,
        settings,
        tokenizer,
        *,
        system: str | None = None,
        lossy_window: int | None = None,
        **options: Any,
    ):
        self.model, self.drafter, self.settings, self.tokenizer = model, drafter, settings, tokenizer
        self.system, self.options = system, options
        self.target = Target(model)
        loop = enter(self.target, drafter, None)[0]
        check_resumes(loop)
        self.lossy_window = lossy_window
        if lossy_window is not None and (isinstance(lossy_window, bool) or not lossy_window > 0):
            raise ValueError(f"lossy_window must be a positive number of visual tokens, got {lossy_window!r}")
        if lossy_window is not None and loop.reads_cache:
            raise ValueError(f"lossy_window drops rows that {type(loop).__name__} reads: use another drafter")
        self.turns: list[Turn] = []
        self._waiting: list[Clip] = []  # videos of the question to come
        self._kept = Kept()
        self._pixels: dict[Any, Any] = {}

    # ---- talking ----

    def send(
        self,
        text: str,
        videos: Source | Sequence[Any] | None = None,
        *,
        images: Any = None,
        num_frames: int | None = None,
        fps: float | None = None,
        on_damage: str = "raise",
        progress=None,
        **options: Any,
    ) -> Reply:
        """Asks, and generates the answer. After an error or Ctrl-C the conversation is as before.

        Args:
            text: the question.
            videos: those that it brings along, as of `prepare`, one or a list; behind those of `extend`.
            images: likewise; before `videos`.
            num_frames, fps, on_damage, progress: how videos are read, as of `load_video`.
            options: of this turn, before the session's own.

        Raises:
            ValueError, FileNotFoundError: as `prepare` and `generate`.
        """
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text must be a question, got {text!r}")
        reading = {"num_frames": num_frames, "fps": fps, "on_damage": on_damage, "progress": progress}
        clips = (*self._waiting, *load_images(images), *load_clips(videos, self.settings, reading))
        inputs = self._prepare(Turn(text, clips, ""))
        output = self._generate(inputs, {**self.options, **options})
        new = output.sequences[0, inputs["input_ids"].shape[1] :]
        answer = self.tokenizer.decode(new, skip_special_tokens=True)
        self.turns.append(Turn(text, clips, answer))
        self._waiting.clear()
        return Reply(answer, output)

    def extend(self, frames: Source, *, num_frames: int | None = None, fps: float | None = None, **reading) -> int:
        """Brings a video, or a piece of a live one, before the question about it is known, and runs it at once.

        It is a video of the next question, behind those that were brought before: `send(text, videos=[...])` with all
        of them answers the same. Returns the tokens that were run.

        Args:
            frames: as `videos` of `send`, a single one.
            num_frames, fps, reading: as there.
        """
        (clip,) = load_clips([frames], self.settings, {"num_frames": num_frames, "fps": fps, **reading})
        clips = (*self._waiting, clip)
        inputs = self._prepare(Turn("", clips, ""))
        ids = inputs["input_ids"]
        end = int((~self.target.is_text(ids))[0].nonzero()[-1]) + 1
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = inputs[name][:, :end]
        output = self._generate(inputs, {"max_new_tokens": 1, "do_sample": False}, run_only=True)
        self._waiting.append(clip)
        return end - output.stats.reused_tokens

    def undo(self) -> Turn:
        """Takes back the last question and its answer. Raises ValueError where there is none."""
        if not self.turns:
            raise ValueError("there is no turn to undo")
        return self.turns.pop()

    def branch(self) -> "Session":
        """Another session with the same past, on memory of its own."""
        other = Session(
            self.model, self.drafter, self.settings, self.tokenizer, system=self.system,
            lossy_window=self.lossy_window, **self.options,
        )  # fmt: skip
        other.turns, other._waiting = list(self.turns), list(self._waiting)
        other._pixels = dict(self._pixels)
        prefix = self._kept.prefix
        if prefix is not None:
            other._kept.prefix = prefix.copy()
        return other

    # ---- files ----

    def save(self, path: PathLike) -> None:
        """Writes the conversation with its videos and rows to a file. Raises OSError, and leaves what was there."""
        loop = enter(self.target, self.drafter, None)[0]
        saved.write(path, self.target, loop, self.turns, self._waiting, self.system, self._kept.prefix)

    @classmethod
    def load(cls, path: PathLike, model, drafter: EntersLoop | None, settings, tokenizer, **options: Any) -> "Session":
        """The session that was saved; for the arguments see Session.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or was made with another target or drafter.
        """
        session = cls(model, drafter, settings, tokenizer, **options)
        found = saved.read(path, session.target, enter(session.target, drafter, None)[0])
        session.turns, session._waiting, session.system = found.turns, found.waiting, found.system
        session._kept.prefix = found.prefix
        return session

    # ---- what there is ----

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat messages; parts of videos and images stand for `clips`, in order."""
        return as_messages(self.system, self.turns)

    @property
    def clips(self) -> list[Clip]:
        """The videos and images of the conversation, those before the next question included."""
        return [clip for turn in self.turns for clip in turn.clips] + self._waiting

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that the session holds: the target's cache and how much of it is in use, the drafter's rows, videos.

        bytes_per_token: of the target's cache.
        """
        prefix, pixels = self._kept.prefix, 0
        for _, made in self._pixels.values():
            pixels += sum(t.nbytes for t in (made if isinstance(made, tuple) else (made,)))
        found = {"cache": 0, "used": 0, "bytes_per_token": 0, "draft": 0, "videos": pixels}
        found["videos"] += sum(clip.frames.nbytes for clip in self.clips)
        if prefix is not None:
            each = prefix.cache.buffer.nbytes // prefix.cache.capacity
            found |= {
                "cache": prefix.cache.buffer.nbytes,
                "bytes_per_token": each,
                "used": each * prefix.rows(len(prefix.head)),
            }
            found["draft"] = sum(t.nbytes for t in (*prefix.draft.values(), *prefix.ends.values()))
        return found

    # ---- inside ----

    def _prepare(self, last: Turn) -> dict[str, Tensor]:
        """The model's inputs for the whole conversation, with a question to be answered."""
        turns = [*self.turns, last]
        clips = self._kept.clips = [clip for turn in turns for clip in turn.clips]
        used = {id(clip.frames) for clip in clips}
        self._pixels = {key: value for key, value in self._pixels.items() if key[0] in used}
        videos = [(clip.frames, clip.info) for clip in clips if clip.medium == "video"]
        images = [clip.frames for clip in clips if clip.medium == "image"]
        messages = as_messages(self.system, turns)[:-1]
        return prepare(self.settings, self.tokenizer, messages, videos, images=images, memo=self._pixels)

    def _generate(self, inputs: dict[str, Tensor], options: dict[str, Any], run_only: bool = False) -> GenerateOutput:
        """run_only: what is drawn is of no use; a drafter that keeps nothing need not begin."""
        loop = enter(self.target, self.drafter, None)[0]
        drafter = None if run_only and loop.keeper() == NoDrafter().keeper() else self.drafter
        output = generate(
            self.model, drafter, **self.target.inputs(inputs), **{"tokenizer": self.tokenizer, **options},
            prefixes=self._kept,
        )  # fmt: skip
        if self.lossy_window is not None:
            self._kept.drop(self.target, self.lossy_window)
        return output
