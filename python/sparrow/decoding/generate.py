"""sparrow.generate: transformers' generate() with a draft-and-verify loop inside; same output, fewer target passes."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from sparrow.decoding.loop import decode_round
from sparrow.decoding.stats import Clock, DecodeStats
from sparrow.drafters.network import SparrowDrafter
from sparrow.drafters.protocol import DecodeState, Drafter, Pending
from sparrow.drafters.specvlm import PrunedTarget, SpecVLM
from sparrow.drafters.text import NoDrafter, TextDrafter
from sparrow.drafters.visual import VisualDrafter
from sparrow.sampling import Sampler
from sparrow.targets.adapter import Target
from sparrow.targets.cache import TargetCache
from sparrow.targets.positions import prompt_positions
from sparrow.targets.processors import (
    REFUSED_ARGUMENTS,
    refuse_unsupported,
    rules_from,
    take_stop_strings,
    with_stop_strings,
)
from sparrow.tree import TreeConfig
from sparrow_ext import require_backend


@dataclass
class GenerateOutput:
    """What generate returns.

    Attributes:
        sequences: int64 [1, P + new], prompt included, as transformers' generate.
        stats: tau, acceptance, times, memory.
        past_key_values: the target's cache, cut to len(sequences) - 1: transformers' generate continues from it.
    """

    sequences: Tensor
    stats: DecodeStats
    past_key_values: TargetCache

    @property
    def cache(self) -> TargetCache:
        """past_key_values under the name it has in transformers from 5.24 on."""
        return self.past_key_values


def generate(
    model,
    drafter: SparrowDrafter | SpecVLM | Drafter | None = None,
    *,
    tree: TreeConfig | str | None = None,
    seed: int | None = None,
    positions: str = "hf",
    streamer=None,
    stopping_criteria=None,
    stop_strings=None,
    tokenizer=None,
    **kwargs,
) -> GenerateOutput:
    """Generates as `model.generate(**kwargs)` does, token for token, drafting with `drafter`.

    Greedy output is that of transformers' generate. Sampled output follows the target's distribution exactly and, for a
    given seed, is the same whatever the drafter and the tree.

    Args:
        model: an unmodified transformers video LLM (sparrow.targets.adapter.FAMILIES). It is left as it was found.
        drafter: a SparrowDrafter made for this model, SpecVLM() for the model itself with fewer visual tokens, any
            object with the loop's Drafter protocol, or None for plain decoding through the same operators and cache.
        tree: shape of the draft tree, a TreeConfig or "total-depth-width"; default: the drafter's own.
        seed: of the sampling noise; default: drawn from torch's global generator.
        positions: "hf" numbers the prompt as transformers does, "reference" as Qwen2/2.5-VL were trained.
        streamer: gets the prompt, then every token as it is accepted, as in transformers.
        stopping_criteria, stop_strings, tokenizer: as in transformers; run after every token, on CPU tensors.
        kwargs: inputs (input_ids, pixel_values_videos, ...) and options (max_new_tokens, do_sample, temperature, top_k,
            top_p, repetition_penalty, logits_processor, eos_token_id, generation_config, ...) of model.generate.

    Raises:
        ValueError: an option that is not supported (beams, several return sequences, batches, ...), named; a drafter
            that was made for another target, or is not in its dtype on its device; a model that is not supported; an
            argument of the wrong type or out of range.
    """
    if not hasattr(model, "config") or not hasattr(model, "generate"):
        raise ValueError(f"model must be a transformers model, got {type(model).__name__}")
    target = Target(model)
    for name in REFUSED_ARGUMENTS:
        if kwargs.pop(name, None) is not None:
            raise ValueError(f"sparrow.generate does not support {name}")
    _check_arguments(target, seed, streamer, kwargs)
    require_backend("tree_attention", target.embedding)
    loop_drafter, shape = _prepare_drafter(target, drafter, tree)
    if (ids := prompt_positions(target, kwargs, positions)) is not None:
        kwargs["position_ids"] = ids
    run = _Run(target, loop_drafter, shape, seed, streamer)
    stop_strings = stop_strings or take_stop_strings(model, kwargs)
    criteria = with_stop_strings(stopping_criteria, stop_strings, tokenizer)
    with _left_as_found(model), torch.no_grad():
        model.generate(**kwargs, stopping_criteria=criteria, custom_generate=run)
    assert run.output is not None
    return run.output


def _check_arguments(target: Target, seed: object, streamer: object, kwargs: dict) -> None:
    """What would otherwise fail deep inside, or on a GPU without a word. Raises ValueError."""
    ids, new = kwargs.get("input_ids"), kwargs.get("max_new_tokens")
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2 or ids.numel() == 0:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"input_ids must be an int64 tensor [1, P], P >= 1, got {got}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= target.vocab_size:
        raise ValueError(f"input_ids must lie in [0, {target.vocab_size}), got {low if low < 0 else high}")
    if new is not None and not isinstance(new, Integral):
        raise ValueError(f"max_new_tokens must be an integer, got {new!r}")
    if seed is not None and not (isinstance(seed, Integral) and -(2**63) <= int(seed) < 2**63):
        raise ValueError(f"seed must be an integer of 64 bits, got {seed!r}")
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise ValueError(f"streamer must have put and end, as transformers' have, got {type(streamer).__name__}")


def _prepare_drafter(target: Target, drafter, tree: TreeConfig | str | None) -> tuple[Drafter, TreeConfig | None]:
    if isinstance(tree, str):
        tree = TreeConfig.parse(tree)
    if tree is not None and not isinstance(tree, TreeConfig):
        raise ValueError(f'tree must be a TreeConfig or text such as "30-4-8", got {tree!r}')
    if drafter is None:
        if tree is not None:
            raise ValueError("tree needs a drafter: plain decoding drafts nothing")
        return NoDrafter(), None
    if isinstance(drafter, SpecVLM):
        if tree is not None:
            raise ValueError(f"tree must be None: SpecVLM's tree is static (SpecVLM.children), got {tree}")
        return PrunedTarget(target, drafter), drafter.shape
    if isinstance(drafter, SparrowDrafter):
        drafter.attach(target)
        have, want = drafter.fc.weight, target.embedding
        if (have.dtype, have.device) != (want.dtype, want.device):
            raise ValueError(
                f"the drafter is {have.dtype} on {have.device}, the model {want.dtype} on {want.device}: call "
                "drafter.place(model.device, model.dtype)"
            )
        loop = VisualDrafter(drafter) if drafter.config.positions == "sequence" else TextDrafter(drafter)
        return loop, tree or TreeConfig.parse(drafter.config.tree)
    if isinstance(drafter, type) or not all(hasattr(drafter, name) for name in ("hidden_layer", "begin", "draft")):
        got = f"the class {drafter.__name__}" if isinstance(drafter, type) else type(drafter).__name__
        raise ValueError(f"drafter must be a SparrowDrafter, SpecVLM() or a Drafter object, got {got}")
    return drafter, tree or TreeConfig()


@contextlib.contextmanager
def _left_as_found(model) -> Iterator[None]:
    """Evaluation mode inside; training flags and M-RoPE deltas are restored in any case (attention: see Target)."""
    training = [module for module in model.modules() if module.training]
    has_deltas = hasattr(model.model, "rope_deltas")
    deltas = getattr(model.model, "rope_deltas", None)
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
        if has_deltas:
            model.model.rope_deltas = deltas


class _Emitted:
    """The sequence so far, on the host; runs stopping criteria and streamer after every token."""

    def __init__(self, prompt: Tensor, criteria, streamer):
        self.ids = prompt.cpu()
        self.prompt_tokens = prompt.shape[1]
        self.criteria, self.streamer = criteria, streamer
        self.done = False
        if streamer is not None:
            streamer.put(self.ids)

    @property
    def count(self) -> int:
        return self.ids.shape[1] - self.prompt_tokens

    def push(self, token: int) -> bool:
        """Appends one token; True where generation ends with it."""
        new = torch.tensor([[token]])
        self.ids = torch.cat([self.ids, new], dim=1)
        if self.streamer is not None:
            self.streamer.put(new[0])
        self.done = bool(torch.as_tensor(self.criteria(self.ids, None)).all())
        return self.done


class _Run:
    """The callable that generate() calls in place of its own decoding loop, with everything prepared."""

    def __init__(self, target: Target, drafter: Drafter, shape: TreeConfig | None, seed: int | None, streamer):
        self.target, self.drafter, self.shape, self.seed, self.streamer = target, drafter, shape, seed, streamer
        self.output: GenerateOutput | None = None

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        refuse_unsupported(generation_config)
        if input_ids.shape[0] != 1:
            raise ValueError(f"sparrow.generate takes one sequence, got a batch of {input_ids.shape[0]}")
        if model_kwargs.get("attention_mask") is not None:
            raise ValueError("sparrow.generate takes a prompt without padding: attention_mask must be all ones")
        seed = int(torch.randint(2**62, ())) if self.seed is None and generation_config.do_sample else self.seed or 0
        rules = rules_from(generation_config, logits_processor, seed)
        given, input_ids = input_ids.device, input_ids.to(self.target.device)
        clock, out = Clock(input_ids.device), _Emitted(input_ids, stopping_criteria, self.streamer)
        stats = DecodeStats(tree=str(self.shape or "none"), depth=self.shape.depth if self.shape else 0)
        most = generation_config.max_length - input_ids.shape[1]
        shape = self.shape or _PLAIN
        with clock.stage("prefill"):
            state, is_text = self._prefill(input_ids, model_kwargs, rules, most, shape)
        out.push(int(state.root))
        with self.target.verifying():
            while not out.done:
                before = out.count
                tokens, counts = decode_round(self.target, self.drafter, state, shape, clock, out.push)
                for token in [] if out.done else tokens[out.count - before :]:
                    if out.push(token):
                        break
                stats.emitted.append(out.count - before)
                stats.accepted.append(counts[0] - 1)
        state.cache.set_length(out.ids.shape[1] - 1)
        if self.streamer is not None:
            self.streamer.end()
        stats.prompt_tokens, stats.new_tokens = input_ids.shape[1], out.count
        stats.visual_tokens = int((~is_text).sum())
        clock.write(stats)
        self.output = GenerateOutput(out.ids.to(given), stats, state.cache)
        return self.output.sequences

    def _prefill(self, prompt: Tensor, model_kwargs, rules, most: int, shape: TreeConfig) -> tuple[DecodeState, Tensor]:
        """Runs the prompt and draws the first token. Which prompt tokens are text is decided here, once."""
        target = self.target
        cache = target.new_cache(prompt.shape[1] + most + shape.nodes)
        model_kwargs[target.cache_argument] = cache
        prefill = target.prefill(prompt, model_kwargs, self.drafter.hidden_layer, self.drafter.visual_layer)
        sampler = Sampler(rules, prompt, target.vocab_size)
        root = sampler.first(prefill.logits, prompt)
        visual = torch.tensor(sorted(target.visual_tokens()), device=prompt.device)
        is_text = ~torch.isin(prompt, visual)
        length = torch.full((prompt.shape[0],), prompt.shape[1] + 1, dtype=torch.int64, device=prompt.device)
        state = DecodeState(cache, root, length, prefill.next_position, _NOTHING, sampler)
        self.drafter.begin(prompt, is_text, prefill, state, most)
        return state, is_text


_PLAIN = TreeConfig(total=1, depth=1, width=1)
_NOTHING = Pending(*[torch.empty(0)] * 5)
