"""The target's states along a given answer: what a drafter is trained on."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from sparrow.targets.adapter import Target
from sparrow.targets.borrow import lock_of
from sparrow.targets.positions import prompt_positions


@dataclass(frozen=True)
class TeacherStates:
    """One sequence, prompt and answer, N tokens.

    Attributes:
        tokens: int64 [N].
        is_text: bool [N]; False at the prompt's placeholders of images and video.
        position: int64 [N], the target's position ids, last axis (all axes are equal at text).
        states: transformers' hidden_states[k] -> [N, E].
    """

    tokens: Tensor
    is_text: Tensor
    position: Tensor
    states: dict[int, Tensor]


@torch.no_grad()
def teacher_states(
    target: Target, inputs: Mapping[str, Tensor], answer: Tensor, layers: Sequence[int], positions: str = "hf"
) -> TeacherStates:
    """Runs prompt and answer once, numbered as generation numbers them.

    transformers' generate() prepares the prompt, so that positions and caches are those of decoding in every family;
    the answer follows as one forward pass over that cache.

    Args:
        target: the model's adapter.
        inputs: what sparrow.video.prepare returns, one sequence.
        answer: int64 [A], A >= 1.
        layers: indices into transformers' hidden_states (num_layers = after the final norm).
        positions: "hf" or "reference", as in sparrow.generate.

    Raises:
        ValueError: a layer that does not exist, an empty answer, or more than one sequence.
    """
    for layer in layers:
        if not 0 <= layer <= target.num_layers:
            raise ValueError(f"layers must lie in [0, {target.num_layers}], got {layer}")
    if answer.dim() != 1 or not len(answer) or inputs["input_ids"].shape[0] != 1:
        shapes = f"{tuple(answer.shape)} and {tuple(inputs['input_ids'].shape)}"
        raise ValueError(f"answer must be [A], A >= 1, and input_ids [1, P]; got {shapes}")
    arguments: dict[str, object] = dict(inputs)
    if (ids := prompt_positions(target, arguments, positions)) is not None:
        arguments["position_ids"] = ids
    run = _Forced(target, answer.to(target.device)[None], tuple(dict.fromkeys(layers)))
    with lock_of(target.model):
        target.model.generate(**arguments, max_new_tokens=1, do_sample=False, custom_generate=run)
    assert run.output is not None
    return run.output


class _Forced:
    """The callable that generate() calls in place of its own decoding loop."""

    def __init__(self, target: Target, answer: Tensor, layers: Sequence[int]):
        self.target, self.answer, self.layers = target, answer, layers
        self.output: TeacherStates | None = None

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        with ExitStack() as hooks:
            caught = {k: hooks.enter_context(self.target._states_of(k)) for k in self.layers}
            prefill = self.target.prefill(input_ids, model_kwargs, None)
            after = torch.arange(self.answer.shape[1], device=input_ids.device)
            model(
                input_ids=self.answer,
                attention_mask=torch.ones(1, input_ids.shape[1] + len(after), dtype=torch.int64, device=after.device),
                position_ids=prefill.next_position + after,
                use_cache=True,
                logits_to_keep=1,
                **{self.target.cache_argument: model_kwargs[self.target.cache_argument]},
            )
        next_text = prefill.text_position[0, -1] + 1
        self.output = TeacherStates(
            tokens=torch.cat([input_ids, self.answer], dim=1)[0],
            is_text=torch.cat([self.target.is_text(input_ids[0]), torch.ones_like(after, dtype=torch.bool)]),
            position=torch.cat([prefill.text_position[0], next_text + after]),
            states={k: torch.cat(parts, dim=1)[0] for k, parts in caught.items()},
        )
        return self.output.tokens[None]
