"""Losslessness, measured: our output beside transformers' own generate in the same process."""

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparrow.decoding.generate import GenerateOutput, generate
from sparrow.targets.adapter import Target
from sparrow.targets.borrow import lock_of
from sparrow.targets.positions import prompt_positions

NEAR_TIE = (
    1e-4  # a mismatch is a near tie where the reference's top-2 margin is below this share of its largest |logit|
)
REPORTED = 5  # mismatches in a report
MAX_NEAR_TIES = 1e-4  # share of tokens that may be near ties in float32


@dataclass(frozen=True)
class Mismatch:
    """One position where the two outputs part.

    Attributes:
        index: of the token behind the prompt.
        reference, ours: token ids; -1 where a sequence ended.
        margin: reference's logit of its token minus its logit of ours (0 where a sequence ended).
        top2_margin: between the reference's two largest logits.
        max_logit: largest |logit| there.
    """

    index: int
    reference: int
    ours: int
    margin: float
    top2_margin: float
    max_logit: float

    @property
    def near_tie(self) -> bool:
        return self.ours >= 0 and self.reference >= 0 and self.top2_margin < NEAR_TIE * self.max_logit


@dataclass(frozen=True)
class Comparison:
    """Ours beside the reference.

    Attributes:
        reference, ours: int64 [1, P + new]; ours is the first run, unrestarted.
        prompt_tokens: P.
        mismatches: every position where our choice differs, given the reference's prefix.
        output: our first run with its statistics.
        reference_seconds: transformers' generate, whole call.
    """

    reference: Tensor
    ours: Tensor
    prompt_tokens: int
    mismatches: list[Mismatch]
    output: GenerateOutput
    reference_seconds: float
    hashes: tuple[str, str] = field(default=("", ""))

    @property
    def identical(self) -> bool:
        """The two token sequences are equal: same length, same ids."""
        return self.reference.shape == self.ours.shape and bool((self.reference == self.ours).all())

    @property
    def match_rate(self) -> float:
        """Share of the reference's new tokens that we choose, given its prefix."""
        new = self.reference.shape[1] - self.prompt_tokens
        return 1 - len(self.mismatches) / new if new else 1.0

    @property
    def lossless(self) -> bool:
        """No mismatch, or near ties only, at most one in 10^4 tokens (and at most one in a shorter output)."""
        new = self.reference.shape[1] - self.prompt_tokens
        return all(m.near_tie for m in self.mismatches) and len(self.mismatches) <= max(1, new * MAX_NEAR_TIES)

    def summary(self) -> str:
        """One line: the verdict, both lengths, both hashes, and the first mismatch where there is one."""
        lengths = [x.shape[1] - self.prompt_tokens for x in (self.ours, self.reference)]
        line = f"identical: {'yes' if self.identical else 'no'} (tokens {lengths[0]} and {lengths[1]}, "
        line += f"SHA-256 {self.hashes[0]} and {self.hashes[1]})"
        if self.mismatches:
            m = self.mismatches[0]
            line += f"; first mismatch at token {m.index}: {m.ours} for {m.reference}, logit margin {m.margin:.3g}"
            line += f", match rate {self.match_rate:.4f}"
        return line

    def report(self) -> str:
        """A few lines to read: the verdict, what drafting saved, and the first mismatches where there are any."""
        ours, reference = (x.shape[1] - self.prompt_tokens for x in (self.ours, self.reference))
        stats = self.output.stats
        lines = [
            f"identical to transformers' generate: {'yes' if self.identical else 'no'}",
            f"  new tokens       {ours}, transformers {reference}",
            f"  SHA-256          {self.hashes[0]}, transformers {self.hashes[1]}",
        ]
        if stats.rounds:
            lines.append(
                f"  target's passes  {stats.rounds} after the prompt, {stats.tau:.2f} tokens each, tree {stats.tree}"
            )
        if self.mismatches:
            kind = "near ties only: lossless" if self.lossless else "not lossless"
            lines.append(f"  mismatches       {len(self.mismatches)}, match rate {self.match_rate:.4f}; {kind}")
        for m in self.mismatches[:REPORTED]:
            tie = ", a near tie" if m.near_tie else ""
            lines.append(f"    token {m.index}: {m.ours} for {m.reference}, logit margin {m.margin:.3g}{tie}")
        if (more := len(self.mismatches) - REPORTED) > 0:
            lines.append(f"    and {more} more")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report()


def compare(model, drafter=None, *, max_restarts: int = 16, **kwargs: Any) -> Comparison:
    """Greedy decoding by transformers' generate and by ours; after a mismatch ours restarts from the right prefix.

    `print` the result for a short report.

    Args:
        model, drafter, kwargs: as for sparrow.generate, inputs and options; streamer and on_round hear our first run.
        max_restarts: mismatches looked at before giving up; a later one is not counted.

    Raises:
        ValueError: do_sample=True (transformers draws other noise), or options one of the two refuses.
    """
    if kwargs.get("do_sample"):
        raise ValueError("compare is for greedy decoding: transformers samples with noise of its own")
    ours: dict[str, Any] = {name: kwargs.pop(name) for name in ("tree", "seed", "positions") if name in kwargs}
    heard: dict[str, Any] = {name: kwargs.pop(name) for name in ("streamer", "on_round") if name in kwargs}
    with lock_of(model):
        return _compare(model, drafter, max_restarts, ours, heard, {**kwargs, "do_sample": False})


def _compare(
    model, drafter, max_restarts: int, ours: dict[str, Any], heard: dict[str, Any], kwargs: dict[str, Any]
) -> Comparison:
    start = time.perf_counter()
    with torch.no_grad():
        reference = model.generate(
            **kwargs, **_positions(model, kwargs, ours), return_dict_in_generate=True, output_logits=True
        )
    seconds = time.perf_counter() - start
    ids, prompt = reference.sequences, kwargs["input_ids"].shape[1]
    first = output = generate(model, drafter, **kwargs, **ours, **heard)
    mismatches: list[Mismatch] = []
    while (at := _first_difference(ids, output.sequences)) is not None and len(mismatches) < max_restarts:
        mismatches.append(_mismatch(ids, output.sequences, at, prompt, reference.logits))
        if at + 1 >= ids.shape[1]:
            break
        longer = _from_prefix(kwargs, ids[:, : at + 1]) | {"max_new_tokens": ids.shape[1] - at - 1}
        output = generate(model, drafter, **longer, **ours)
    return Comparison(
        ids,
        first.sequences,
        prompt,
        mismatches,
        first,
        seconds,
        (_hash(first.sequences[:, prompt:]), _hash(ids[:, prompt:])),
    )


def _positions(model, inputs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Tensor]:
    """The reference run numbers the prompt by the same rule as ours."""
    ids = prompt_positions(Target(model), dict(inputs), str(ours.get("positions", "hf")))
    return {} if ids is None else {"position_ids": ids}


def _hash(ids: Tensor) -> str:
    return hashlib.sha256(ids.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _first_difference(a: Tensor, b: Tensor) -> int | None:
    n = min(a.shape[1], b.shape[1])
    different = (a[0, :n] != b[0, :n]).nonzero()
    if len(different):
        return int(different[0])
    return None if a.shape[1] == b.shape[1] else n


def _mismatch(reference: Tensor, ours: Tensor, at: int, prompt: int, logits: tuple[Tensor, ...]) -> Mismatch:
    want = int(reference[0, at]) if at < reference.shape[1] else -1
    got = int(ours[0, at]) if at < ours.shape[1] else -1
    if want < 0:
        return Mismatch(at - prompt, want, got, 0.0, 0.0, 0.0)
    row = logits[at - prompt][0].float()
    top = row.topk(2).values
    margin = float(row[want] - row[got]) if got >= 0 else 0.0
    return Mismatch(at - prompt, want, got, margin, float(top[0] - top[1]), float(row.abs().max()))


def _from_prefix(inputs: dict[str, Any], prefix: Tensor) -> dict[str, Any]:
    """The same inputs with a longer prompt: generated tokens are text."""
    more = prefix.shape[1] - inputs["input_ids"].shape[1]
    result = {**inputs, "input_ids": prefix, "attention_mask": torch.ones_like(prefix)}
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        result["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, more)], dim=1)
    return result
