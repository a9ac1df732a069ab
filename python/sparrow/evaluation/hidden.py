"""What each layer of a target does to an answer: how far its text rows have settled, and what they still take from the
video. Row k of a result is the state behind k layers: 0 = the embeddings.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparrow.evaluation.cells import interval, quotient
from sparrow.targets.adapter import Target
from sparrow.targets.attention import attention_in
from sparrow.targets.looking import looking
from sparrow.targets.prefilling import of_rows

Sums = list[dict[str, tuple[float, float]]]  # by layer and figure: (sum, of how many)
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
def profile(target: Target, inputs: Mapping[str, Tensor], answer: Tensor, tell: Callable[[], None]) -> Sums:
    """One prompt and its answer, run as one sequence; then its text rows alone from each layer on.

    No more is needed where text cannot see the video: the tokens are those of miniature.layer_cut.

    Args:
        target: in eval mode.
        inputs: as `sparrow.video.prepare` makes them, one sequence; answer: int64 [A], the target's own, A >= 1.
        tell: called after the whole pass and after each cut one.

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
    of, run = len(answer), _Run(visual)
    with looking(target, visual, first) as shares, run.watching(target):
        last = target.model(**whole, use_cache=False, logits_to_keep=of + 1).logits[0, :of].argmax(-1)
    tell()
    rows = [_settled(target, run, k, last) for k in range(target.num_layers + 1)]
    seen = torch.arange(first + 1, first + 1 + of, device=ids.device)
    for k, row in enumerate(rows):
        if k:
            row["attention"] = float(shares[k - 1][:of].sum()), of
            row["uniform"] = float((visual.sum() / seen).sum()), of
    needs = torch.zeros_like(visual[:of])
    for k, row in enumerate(rows):
        kept = run.blind(target, k, of) == last
        needs = ~kept if k == 0 else needs
        tell()
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


@dataclass
class _Run:
    """What a whole-sequence pass leaves behind, of its one sequence.

    Attributes:
        visual: bool [N].
        text: the text rows behind 0, 1, ... layers, before any final norm, [T, E].
        cosine: by layer, of the visual rows to the input, [R].
        arguments: what each layer was called with beside its rows.
    """

    visual: Tensor
    text: list[Tensor] = field(default_factory=list)
    cosine: list[Tensor] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def watching(self, target: Target) -> Iterator[None]:
        """The pass inside is kept."""
        start: list[Tensor] = []

        def see(hidden: Tensor) -> None:
            start[:] = start or [hidden[self.visual].float()]
            self.text.append(hidden[~self.visual])
            self.cosine.append(F.cosine_similarity(hidden[self.visual].float(), start[0], dim=-1))

        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.arguments.append(kwargs)
            see(args[0][0])

        layers = target.decoder.layers
        hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
        hooks.append(layers[-1].register_forward_hook(lambda module, args, out: see(_rows(out)[0])))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def blind(self, target: Target, k: int, of: int) -> Tensor:
        """int64 [of], the tokens where text rows go through the layers behind the k-th alone."""
        hidden = self.text[k][None]
        with attention_in(target.model, "sdpa"):
            for layer, arguments in zip(target.decoder.layers[k:], self.arguments[k:], strict=True):
                hidden = _rows(layer(hidden, **of_rows(arguments, ~self.visual)))
        return predictions(target, hidden[0], of)


def _rows(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def predictions(target: Target, text: Tensor, of: int) -> Tensor:
    """int64 [of], by the last text rows but one; text: [T, E], before the final norm."""
    return target.head(target.norm(text[None, -of - 1 : -1]))[0].argmax(-1)


def _settled(target: Target, run: _Run, k: int, last: Tensor) -> dict[str, tuple[float, float]]:
    of = len(last)
    start, state, final = (run.text[at][-of - 1 : -1].float() for at in (0, k, -1))
    return {
        "agreement": (float((predictions(target, run.text[k], of) == last).sum()), of),
        "cosine_text": (float(F.cosine_similarity(state, start, dim=-1).sum()), of),
        "cosine_visual": (float(run.cosine[k].sum()), len(run.cosine[k])),
        "cosine_last": (float(F.cosine_similarity(state, final, dim=-1).sum()), of),
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
