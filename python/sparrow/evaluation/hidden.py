"""What each layer of a target does to an answer: how far its text rows have settled, and what they still take from the
video. Row k of a result is the state behind k layers: 0 = the embeddings.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparrow.evaluation.cells import interval, quotient
from sparrow.targets.adapter import Target
from sparrow.targets.looking import looking

Sums = list[dict[str, tuple[float, float]]]  # by layer and figure: (sum, of how many)
Cut = Callable[[int], contextlib.AbstractContextManager[None]]
FIGURES = {
    "agreement": "prediction = the last layer's",
    "cosine_text": "text: cosine to the input",
    "cosine_visual": "video: cosine to the input",
    "cosine_last": "text: cosine to the last state",
    "attention": "attention on video",
    "uniform": "video's share of the rows seen",
    "cut": "same tokens, no video behind layer k",
    "cut_video": "of the tokens that need the video",
}


@torch.no_grad()
def profile(target: Target, inputs: Mapping[str, Tensor], answer: Tensor, cut: Cut, tell: Callable[[], None]) -> Sums:
    """One prompt and its answer, run as one sequence, uncut and cut behind each layer.

    Args:
        target: in eval mode.
        inputs: as `sparrow.video.prepare` makes them, one sequence; answer: int64 [A], the target's own, A >= 1.
        cut: miniature.layer_cut of the model: cut(k) hides the video from text rows in all but the first k layers.
        tell: called after each pass.

    Returns:
        row by row {figure: (sum, count)}: agreement, cosines, attention and cuts over the rows that predict the answer.

    Raises:
        ValueError: no answer, or the prompt has no visual token.
    """
    if not len(answer):
        raise ValueError("answer must have a token")
    whole = _whole(inputs, answer)
    ids = whole["input_ids"]
    first = ids.shape[1] - len(answer) - 1  # the row that predicts the answer's first token
    visual = ~target.is_text(ids[0])
    visual[first + 1 :] = False
    if not visual.any():
        raise ValueError("the prompt has no visual token: there is nothing to look for")
    with looking(target, visual, first) as shares, _states(target, visual, first) as states:
        last = _logits(target, whole, len(answer)).argmax(-1)
    tell()
    rows = [_settled(target, state, states[-1], last) for state in states]
    of = len(answer)
    seen = torch.arange(first + 1, first + 1 + of, device=ids.device)
    for k, row in enumerate(rows):
        if k:
            row["attention"] = float(shares[k - 1][:of].sum()), of
            row["uniform"] = float((visual.sum() / seen).sum()), of
    blind = _cut_tokens(target, whole, of, cut, 0, tell)
    needs = blind != last
    for k, row in enumerate(rows):
        kept = (blind if k == 0 else _cut_tokens(target, whole, of, cut, k, tell)) == last
        row["cut"] = float(kept.sum()), of
        row["cut_video"] = float((kept & needs).sum()), float(needs.sum())
    rows[-1]["reproduced"] = float((last == answer.to(last.device)).sum()), of
    return rows


def _whole(inputs: Mapping[str, Tensor], answer: Tensor) -> dict[str, Any]:
    """Prompt and answer as one sequence; its token types, where a family has them, are text's."""
    whole: dict[str, Any] = {name: value for name, value in inputs.items() if name != "attention_mask"}
    device = whole["input_ids"].device
    whole["input_ids"] = torch.cat([whole["input_ids"], answer.to(device)[None]], dim=1)
    if (types := whole.get("mm_token_type_ids")) is not None:
        whole["mm_token_type_ids"] = F.pad(types, (0, len(answer)))
    return whole


def _logits(target: Target, whole: Mapping[str, Any], of: int) -> Tensor:
    """float32 [A, V], of the rows that predict the answer."""
    return target.model(**whole, use_cache=False, logits_to_keep=of + 1).logits[0, :of].float()


def _cut_tokens(
    target: Target, whole: Mapping[str, Any], of: int, cut: Cut, k: int, tell: Callable[[], None]
) -> Tensor:
    with cut(k):
        tokens = _logits(target, whole, of).argmax(-1)
    tell()
    return tokens


class _State:
    """The rows of the answer behind a layer, [A + 1, E], and the mean cosine of the video's rows to the input."""

    def __init__(self, hidden: Tensor, visual: Tensor, first: int, inputs: Tensor | None):
        self.text, self.inputs = hidden[first:], hidden if inputs is None else inputs
        self.text_cosine = F.cosine_similarity(self.text.float(), self.inputs[first:].float(), dim=-1)
        self.visual_cosine = F.cosine_similarity(hidden[visual].float(), self.inputs[visual].float(), dim=-1)


@contextlib.contextmanager
def _states(target: Target, visual: Tensor, first: int) -> Iterator[list[_State]]:
    """Yields a list that receives the state behind 0, 1, ... layers of the pass inside, before any final norm."""
    states: list[_State] = []

    def before(module: Any, args: Any) -> None:
        states.append(_State(args[0][0], visual, first, None))

    def behind(module: Any, args: Any, out: Any) -> None:
        hidden = (out[0] if isinstance(out, tuple) else out)[0]
        states.append(_State(hidden, visual, first, states[0].inputs))

    layers = target.decoder.layers
    hooks = [layers[0].register_forward_pre_hook(before), *(x.register_forward_hook(behind) for x in layers)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _settled(target: Target, state: _State, final: _State, last: Tensor) -> dict[str, tuple[float, float]]:
    of = len(last)
    chosen = target.head(target.norm(state.text[None, :of]))[0].argmax(-1)
    to_last = F.cosine_similarity(state.text[:of].float(), final.text[:of].float(), dim=-1)
    return {
        "agreement": (float((chosen == last).sum()), of),
        "cosine_text": (float(state.text_cosine[:of].sum()), of),
        "cosine_visual": (float(state.visual_cosine.sum()), len(state.visual_cosine)),
        "cosine_last": (float(to_last.sum()), of),
    }


def rows_of(clips: Sequence[Sums]) -> list[dict[str, Any]]:
    """Per layer each figure with its interval over clips."""
    rows = []
    for k, layer in enumerate(zip(*clips, strict=True)):
        names = [name for name in FIGURES if name in layer[0]]
        rows.append({"layer": k} | {name: interval([clip[name] for clip in layer], quotient) for name in names})
    return rows


def settled_layer(rows: Sequence[Mapping[str, Any]], name: str, share: float = 0.95) -> int | None:
    """The first layer from which on a figure stays at `share` or more; None = it never does."""
    values = [row[name]["value"] for row in rows]
    low = [k for k, value in enumerate(values) if value is None or value < share]
    at = low[-1] + 1 if low else 0
    return at if at < len(values) else None


def hidden_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, one row per layer."""
    lines = ["| layers k | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['layer']} | " + " | ".join(_cell(row.get(name)) for name in FIGURES) + " |")
    return "\n".join(lines) + "\n"


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    text = f"{figure['value']:.2f}"
    return text if figure["low"] is None else f"{text} [{figure['low']:.2f}, {figure['high']:.2f}]"
