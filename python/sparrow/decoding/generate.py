"""sparrow.generate: transformers' generate() with a draft-and-verify loop inside; same output, fewer target passes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sparrow.decoding.loop import start
from sparrow.decoding.policy import Policy
from sparrow.decoding.prefixes import Prefixes
from sparrow.decoding.reuse import Reuse
from sparrow.decoding.runner import BUCKET, Room, Rounds, capturable, room_for
from sparrow.decoding.stats import Clock, DecodeStats
from sparrow.drafters.protocol import Drafter, EntersLoop
from sparrow.drafters.text import NoDrafter
from sparrow.sampling import SamplingRules
from sparrow.targets.adapter import Target
from sparrow.targets.borrow import borrowed
from sparrow.targets.cache import TargetCache
from sparrow.targets.positions import prompt_positions
from sparrow.targets.processors import (
    REFUSED_ARGUMENTS,
    refuse_unsupported,
    rules_from,
    take_stop_strings,
    with_stop_strings,
)
from sparrow.tree import Root, TreeConfig
from sparrow_ext import require_backend


@dataclass
class GenerateOutput:
    """What generate returns.

    Attributes:
        sequences: int64 [1, P + new], prompt included, as transformers' generate.
        stats: tau, acceptance, times, memory.
        past_key_values: the target's cache, cut to len(sequences) - 1. transformers' generate goes on from it:
            `model.generate(input_ids=longer, attention_mask=ones, past_key_values=...)` (cache=... from 5.24 on), in
            every family.
    """

    sequences: Tensor
    stats: DecodeStats
    past_key_values: TargetCache

    @property
    def cache(self) -> TargetCache:
        """past_key_values under the name it has in transformers from 5.24 on."""
        return self.past_key_values


OnRound = Callable[[list[int], int, float], Any]


def generate(
    model,
    drafter: EntersLoop | None = None,
    *,
    tree: TreeConfig | str | None = None,
    seed: int | None = None,
    positions: str = "hf",
    capture: bool = True,
    streamer=None,
    on_round: OnRound | None = None,
    stopping_criteria=None,
    stop_strings=None,
    tokenizer=None,
    prefixes: Prefixes | None = None,
    **kwargs,
) -> GenerateOutput:
    """Generates as `model.generate(**kwargs)` does, token for token, drafting with `drafter`.

    Greedy output is that of transformers' generate. Sampled output follows the target's distribution exactly and, for a
    given seed, is the same whatever the drafter and the tree. Without an attention_mask transformers takes tokens with
    pad_token_id in the prompt for padding, and so does this.

    The model is left as it was found, after errors, too, but for what transformers' own generate leaves: the M-RoPE
    offset of this prompt (model.model.rope_deltas), with which a next generate goes on from the returned cache. A
    generate that starts anew computes its own.

    Calls for one model from several threads wait for each other. Only sparrow's calls do: the model's own forward or
    generate must not run meanwhile.

    Args:
        model: an unmodified transformers video LLM (sparrow.targets.adapter.FAMILIES) in float32, bfloat16 or float16.
        drafter: a SparrowDrafter made for this model, SpecVLM() for the model itself with fewer visual tokens, any
            object of a subclass of sparrow.drafters.protocol.Drafter, or None for plain decoding through the same
            operators and cache.
        tree: shape of the draft tree, a TreeConfig or "total-depth-width"; "auto" chooses it, every few rounds, by what
            rounds cost here and how sure the drafter is, and drafts nothing where nothing pays (decoding/policy.py);
            default: the drafter's own.
        seed: of the sampling noise; default: drawn from torch's global generator.
        positions: "hf" numbers the prompt as transformers does, "reference" as Qwen2/2.5-VL were trained.
        capture: on a GPU, rounds are captured as one CUDA graph and replayed, from the third on and in the calls that
            follow, which costs memory of this call's caches while the model lives; False = each round's operators are
            launched one by one, as on the CPU, and as is done for SpecVLM, other processors than the operators' four,
            and models with hooks.
        streamer: gets the prompt, then every token as it is accepted, as in transformers.
        on_round: called as on_round(tokens, accepted, seconds) after every round, with the list of tokens it emitted
            (ids), how many drafted tokens it accepted (before any stop), and its wall seconds. The first token comes
            from the prefill, before any round.
        stopping_criteria, stop_strings, tokenizer: as in transformers; run after every token, on CPU tensors.
        prefixes: a PrefixStore: what it has of this prompt's beginning (same tokens, same videos) is not run again, and
            it gets what this call ran; default: nothing is kept. Same tokens, sooner (docs/sessions.md).
        kwargs: inputs (input_ids, pixel_values_videos, ...) and options (max_new_tokens, do_sample, temperature, top_k,
            top_p, repetition_penalty, logits_processor, eos_token_id, generation_config, ...) of model.generate.

    Raises:
        ValueError: an option that is not supported (beams, several return sequences, batches, padding, ...), named; a
            drafter that was made for another target, or is not in its dtype on its device; a model that is not
            supported; an argument of the wrong type or out of range.
        RuntimeError: sampling from logits that are not finite, as in transformers.
    """
    if not hasattr(model, "config") or not hasattr(model, "generate"):
        raise ValueError(f"model must be a transformers model, got {type(model).__name__}")
    target = Target(model)
    for name in REFUSED_ARGUMENTS:
        if kwargs.pop(name, None) is not None:
            raise ValueError(f"sparrow.generate does not support {name}")
    _check_arguments(target, seed, streamer, on_round, kwargs)
    _check_mask(kwargs["input_ids"], kwargs.get("attention_mask"))
    require_backend("tree_attention", target.embedding)
    auto = tree == "auto"
    loop_drafter, shape = enter(target, drafter, None if auto else tree)
    policy = Policy.of(model, loop_drafter, shape or Root(), kwargs["input_ids"].shape[1]) if auto else None
    if (ids := prompt_positions(target, kwargs, positions)) is not None:
        kwargs["position_ids"] = ids
    numbered = kwargs.get("position_ids") is not None
    reuse = None if prefixes is None else Reuse.of(prefixes, target, loop_drafter, kwargs)
    run = _Run(target, loop_drafter, shape, seed, streamer, on_round, numbered, capture, policy, reuse)
    stop_strings = stop_strings or take_stop_strings(model, kwargs)
    criteria = with_stop_strings(stopping_criteria, stop_strings, tokenizer)
    with borrowed(model), torch.no_grad():
        model.generate(**kwargs, stopping_criteria=criteria, custom_generate=run)
    assert run.output is not None
    return run.output


def _check_arguments(target: Target, seed: object, streamer: object, on_round: object, kwargs: dict) -> None:
    """What would otherwise fail deep inside, or on a GPU without a word. Raises ValueError."""
    ids, new = kwargs.get("input_ids"), kwargs.get("max_new_tokens")
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2 or ids.numel() == 0:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"input_ids must be an int64 tensor [1, P], P >= 1, got {got}")
    if ids.shape[0] != 1:
        raise ValueError(f"sparrow.generate takes one sequence, got a batch of {ids.shape[0]}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= target.vocab_size:
        raise ValueError(f"input_ids must lie in [0, {target.vocab_size}), got {low if low < 0 else high}")
    if new is not None and not isinstance(new, Integral):
        raise ValueError(f"max_new_tokens must be an integer, got {new!r}")
    if seed is not None and not (isinstance(seed, Integral) and -(2**63) <= int(seed) < 2**63):
        raise ValueError(f"seed must be an integer of 64 bits, got {seed!r}")
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise ValueError(f"streamer must have put and end, as transformers' have, got {type(streamer).__name__}")
    if on_round is not None and not callable(on_round):
        raise ValueError(f"on_round must be callable, got {type(on_round).__name__}")


def _check_mask(ids: Tensor, mask: object) -> None:
    """Raises ValueError for an attention_mask that hides something, or of a shape transformers has no meaning for."""
    if mask is None:
        return
    p = ids.shape[1]
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != 1 or 1 != mask.shape[1] < p:
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask must be a tensor of shape [1, {p}], as input_ids, got {got}")
    if hidden := int((mask != 1).sum()):
        raise ValueError(
            f"sparrow.generate takes a prompt without padding: attention_mask must be all ones, got {hidden} other "
            f"values in {mask.shape[1]}"
        )


def enter(
    target: Target, drafter: EntersLoop | None, tree: TreeConfig | str | None
) -> tuple[Drafter[Any], TreeConfig | None]:
    """What drafts in the loop, and its trees' size; see EntersLoop."""
    if isinstance(tree, str):
        tree = TreeConfig.parse(tree)
    if tree is not None and not isinstance(tree, TreeConfig):
        raise ValueError(f'tree must be a TreeConfig or text such as "30-4-8", got {tree!r}')
    drafter = NoDrafter() if drafter is None else drafter
    if isinstance(drafter, type) or not hasattr(drafter, "in_loop"):
        got = f"the class {drafter.__name__}" if isinstance(drafter, type) else type(drafter).__name__
        raise ValueError(f"drafter must be a SparrowDrafter, SpecVLM() or a Drafter object, got {got}")
    return drafter.in_loop(target, tree)


class _Emitted:
    """The sequence so far, on the host. Tokens leave through `emit` alone; `stops` may ask about one before it does."""

    def __init__(self, prompt: Tensor, criteria, streamer):
        self.ids = prompt.cpu()
        self.criteria, self.streamer = criteria, streamer
        self.count, self.done = 0, False
        self._ends: list[bool] = []  # the criteria's answers, token by token
        if streamer is not None:
            streamer.put(self.ids)

    def stops(self, token: int) -> bool:
        """Whether generation ends with `token`, behind all tokens asked about before: criteria see each one once."""
        self.ids = torch.cat([self.ids, torch.tensor([[token]])], dim=1)
        self._ends.append(bool(torch.as_tensor(self.criteria(self.ids, None)).all()))
        return self._ends[-1]

    def emit(self, tokens: list[int]) -> list[int]:
        """Emits tokens up to the first that ends generation; returns these."""
        for at, token in enumerate(tokens):
            if self.streamer is not None:
                self.streamer.put(torch.tensor([token]))
            if self.count == len(self._ends):
                self.stops(token)
            self.done = self._ends[self.count]
            self.count += 1
            if self.done:
                return tokens[: at + 1]
        return tokens


class _Run:
    """The callable that generate() calls in place of its own decoding loop, with everything prepared."""

    def __init__(
        self, target: Target, drafter: Drafter[Any], shape: TreeConfig | None, seed: int | None, streamer,
        on_round: OnRound | None, numbered: bool, capture: bool, policy: Policy | None, reuse: Reuse | None,
    ):  # fmt: skip
        self.target, self.drafter, self.shape, self.seed = target, drafter, shape, seed
        self.capture, self.policy, self.reuse = capture, policy, reuse
        self.streamer, self.on_round, self.numbered = streamer, on_round, numbered
        self.output: GenerateOutput | None = None

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        refuse_unsupported(generation_config)
        _refuse_all_padding(input_ids, model_kwargs.get("attention_mask"))
        seed = int(torch.randint(2**62, ())) if self.seed is None and generation_config.do_sample else self.seed or 0
        rules = rules_from(generation_config, logits_processor, seed)
        given, input_ids = input_ids.device, input_ids.to(self.target.device)
        clock, out = Clock(input_ids.device), _Emitted(input_ids, stopping_criteria, self.streamer)
        policy, shape = self.policy, self.policy.largest if self.policy else self.shape or Root()
        stats = DecodeStats(tree="auto" if policy else str(shape), depth=shape.max_path - 1)
        most = generation_config.max_length - input_ids.shape[1]
        with clock.stage("prefill"):
            if self.reuse is not None:
                model_kwargs = self.reuse.enter(input_ids, model_kwargs)
            room, cache = self._memory(rules, input_ids.shape[1] + most + shape.nodes)
            state = start(self.target, self.drafter, input_ids, model_kwargs, rules, most, shape, cache, self.reuse)
            if room is not None:
                room.keep(cache)
        if policy:
            state.scores = torch.zeros(1, policy.candidates, pin_memory=state.root.is_cuda)
        rounds = Rounds(self.target, self.drafter, state, shape, clock, out.stops, room)
        if self.numbered:
            self.target.keep_offset(state.position, input_ids.shape[1])
        out.emit([int(state.root)])
        with self.target.verifying():
            while not out.done:
                begun, drafting = time.perf_counter(), clock.spent("draft")
                if policy:
                    rounds.use(policy.shape)
                tokens, counts = rounds()
                seconds, tokens = time.perf_counter() - begun, out.emit(tokens)
                if policy and state.scores is not None:
                    stats.trees[str(policy.shape)] = stats.trees.get(str(policy.shape), 0) + 1
                    drafting = clock.spent("draft") - drafting
                    policy.saw(counts[0] - 1, drafting, seconds - drafting, state.scores[0])
                stats.emitted.append(len(tokens))
                stats.accepted.append(counts[0] - 1)
                if self.on_round is not None:
                    self.on_round(tokens, counts[0] - 1, seconds)
        cache.fixed = False
        cache.put_back()
        cache.set_length(out.ids.shape[1] - 1)
        if self.reuse is not None:
            cache.set_length(out.ids.shape[1] - 1 - len(self.reuse.gone))
            self.reuse.leave(out.ids, cache, room, state)
            stats.reused_tokens = self.reuse.first
        if self.streamer is not None:
            self.streamer.end()
        stats.prompt_tokens, stats.new_tokens = input_ids.shape[1], out.count
        stats.visual_tokens = int((~self.target.is_text(input_ids)).sum())
        clock.write(stats)
        self.output = GenerateOutput(out.ids.to(given), stats, cache)
        return self.output.sequences

    def _memory(self, rules: SamplingRules, capacity: int) -> tuple[Room | None, TargetCache]:
        """A cache for so many rows, and the memory it lies in where rounds are to be captured on it."""
        captured = self.capture and capturable(self.target, self.drafter, rules)
        if self.reuse is not None:
            capacity = -(-capacity // BUCKET) * BUCKET
            if (own := self.reuse.memory(capacity)) is not None:
                return own[0] if captured else None, own[1]
        room = room_for(self.target, self.drafter, rules, capacity) if captured else None
        return room, self.target.new_cache(capacity) if room is None else room.lend(self.target)


def _refuse_all_padding(input_ids: Tensor, mask: Tensor | None) -> None:
    """A mask is here where transformers found padding tokens in a prompt without one."""
    if mask is not None and not mask.any():
        raise ValueError(f"input_ids must hold more than padding (pad_token_id), got {input_ids.tolist()}")
