"""sparrow.generate: transformers' generate() with a draft-and-verify loop inside; same output, fewer target passes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparrow.decoding.arguments import check_arguments, check_drop_layer, check_mask, refuse_all_padding
from sparrow.decoding.emitted import Batch, to_the_front
from sparrow.decoding.loop import padding_of, run_last, start
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
from sparrow.targets.prefilling import Portions
from sparrow.targets.processors import (
    REFUSED_ARGUMENTS,
    refuse_unsupported,
    rules_from,
    take_stop_strings,
    with_stop_strings,
)
from sparrow.targets.split_cache import SplitCache
from sparrow.tree import Root, TreeConfig
from sparrow_ext import require_backend


@dataclass
class GenerateOutput:
    """What generate returns.

    Attributes:
        sequences: int64 [B, P + new], prompts included, as transformers' generate: behind the end of a sequence that is
            shorter than others stands pad_token_id (0 where the model has none).
        stats: tau, acceptance, times, memory.
        past_key_values: the target's cache, cut to P + new - 1. transformers' generate goes on from it:
            `model.generate(input_ids=longer, attention_mask=ones, past_key_values=...)` (cache=... from 5.24 on), in
            every family; the mask is 0 where the sequences are padded.
    """

    sequences: Tensor
    stats: DecodeStats
    past_key_values: TargetCache

    @property
    def cache(self) -> TargetCache:
        """past_key_values under the name it has in transformers from 5.24 on."""
        return self.past_key_values


OnRound = Callable[[Any, Any, float], Any]


def generate(
    model,
    drafter: EntersLoop | None = None,
    *,
    tree: TreeConfig | str | None = None,
    seed: int | Sequence[int] | None = None,
    positions: str = "hf",
    capture: bool = True,
    streamer=None,
    on_round: OnRound | None = None,
    stopping_criteria=None,
    stop_strings=None,
    tokenizer=None,
    prefixes: Prefixes | None = None,
    visual_drop_layer: int | None = None,
    **kwargs,
) -> GenerateOutput:
    """Generates as `model.generate(**kwargs)` does, token for token, drafting with `drafter`.

    Greedy output is that of transformers' generate. Sampled output follows the target's distribution exactly and, for a
    given seed, is the same whatever the drafter and the tree. Without an attention_mask transformers takes tokens with
    pad_token_id in the prompt for padding, and so does this.

    Several prompts, padded on the left, are decoded together, each as if alone: with its own stops and noise, and with
    penalties and processors that do not see the padding. (transformers shows it to them.) One that has ended costs
    nothing more. Rounds of several sequences are not captured.

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
        tree: shape of the draft tree, a TreeConfig or "total-depth-width"; "own": the drafter's; "auto": chosen every
            few rounds by what rounds cost here and how sure the drafter is, and nothing is drafted where nothing pays
            (decoding/policy.py). Default: "auto" where the drafter can change its tree (a SparrowDrafter), on the CPU;
            "own" otherwise, since no GPU has measured "auto" yet.
        seed: of the sampling noise; of several prompts the first one's, the others count on; or a list, one for each.
            Default: drawn from torch's global generator.
        positions: "hf" numbers the prompt as transformers does, "reference" as Qwen2/2.5-VL were trained.
        capture: on a GPU, rounds are captured as one CUDA graph and replayed, from the third on and in the calls that
            follow, which costs memory of this call's caches while the model lives; False = each round's operators are
            launched one by one, as on the CPU, and as is done for SpecVLM, other processors than the operators' four,
            and models with hooks.
        streamer: gets the prompt, then every token as it is accepted, as in transformers; of one sequence.
        on_round: called as on_round(tokens, accepted, seconds) after every round, with the list of tokens it emitted
            (ids), how many drafted tokens it accepted (before any stop), and its wall seconds. The first token comes
            from the prefill, before any round. With several prompts it gets lists of these, one per prompt: [] and 0
            where it had ended.
        stopping_criteria, stop_strings, tokenizer: as in transformers; run after every token of a sequence, on its own
            ids, a CPU tensor [1, L], padding included.
        prefixes: a PrefixStore: what it has of this prompt's beginning (same tokens, same videos) is not run again, and
            it gets what this call ran; default: nothing is kept. Same tokens, sooner (docs/sessions.md). Of one prompt.
        visual_drop_layer: LOSSY, and off by default: from this layer on (0 = the first) visual tokens are neither run
            nor kept, so that text does not see them there. The output is no longer that of transformers' generate, and
            the returned cache is for no other use (docs/prefill.md). Of one prompt, without prefixes.
        kwargs: inputs (input_ids, pixel_values_videos, ...) and options (max_new_tokens, do_sample, temperature, top_k,
            top_p, repetition_penalty, logits_processor, eos_token_id, generation_config, ...) of model.generate.
            prefill_chunk_size=1024 runs the prompt by so many tokens at a time: same output, less memory; the videos
            are encoded once, in every family.

    Raises:
        ValueError: an option that is not supported (beams, several return sequences, ...), named; a batch for a drafter
            of single sequences (the rivals'); a drafter that was made for another target, or is not in its dtype on its
            device; a model that is not supported; an argument of the wrong type or out of range.
        RuntimeError: sampling from logits that are not finite, as in transformers.
    """
    if not hasattr(model, "config") or not hasattr(model, "generate"):
        raise ValueError(f"model must be a transformers model, got {type(model).__name__}")
    target = Target(model)
    for name in REFUSED_ARGUMENTS:
        if kwargs.pop(name, None) is not None:
            raise ValueError(f"sparrow.generate does not support {name}")
    check_arguments(target, seed, streamer, on_round, kwargs)
    check_mask(kwargs["input_ids"], kwargs.get("attention_mask"))
    require_backend("tree_attention", target.embedding)
    loop_drafter, shape = enter(target, drafter, None if tree in ("auto", "own") else tree)
    auto = tree == "auto" or (tree is None and loop_drafter.scores_width > 0 and target.device.type == "cpu")
    several = f"takes one sequence, got a batch of {len(kwargs['input_ids'])}"
    if len(kwargs["input_ids"]) > 1 and not loop_drafter.takes_batches:
        raise ValueError(f"this drafter {several}")
    if len(kwargs["input_ids"]) > 1 and prefixes is not None:
        raise ValueError(f"prefixes {several}")
    check_drop_layer(target, loop_drafter, visual_drop_layer, kwargs, prefixes)
    policy = Policy.of(model, loop_drafter, shape or Root(), kwargs["input_ids"]) if auto else None
    if (ids := prompt_positions(target, kwargs, positions)) is not None:
        kwargs["position_ids"] = ids
    numbered = kwargs.get("position_ids") is not None
    reuse = None if prefixes is None else Reuse.of(prefixes, target, loop_drafter, kwargs)
    run = _Run(
        target, loop_drafter, shape, seed, streamer, on_round, numbered, capture, policy, reuse, visual_drop_layer
    )
    stop_strings = stop_strings or take_stop_strings(model, kwargs)
    criteria = with_stop_strings(stopping_criteria, stop_strings, tokenizer)
    with borrowed(model), torch.no_grad():
        run.clock = Clock(target.device)
        model.generate(**kwargs, stopping_criteria=criteria, custom_generate=run)
    assert run.output is not None
    return run.output


def enter(
    target: Target, drafter: EntersLoop | None, tree: TreeConfig | str | None
) -> tuple[Drafter[Any], TreeConfig | None]:
    """What drafts in the loop, and its trees' size; see EntersLoop."""
    if isinstance(tree, str):
        tree = TreeConfig.parse(tree)
    if tree is not None and not isinstance(tree, TreeConfig):
        raise ValueError(f'tree must be a TreeConfig, "auto", "own" or text such as "30-4-8", got {tree!r}')
    drafter = NoDrafter() if drafter is None else drafter
    if isinstance(drafter, type) or not hasattr(drafter, "in_loop"):
        got = f"the class {drafter.__name__}" if isinstance(drafter, type) else type(drafter).__name__
        raise ValueError(f"drafter must be a SparrowDrafter, SpecVLM() or a Drafter object, got {got}")
    return drafter.in_loop(target, tree)


class _Run:
    """The callable that generate() calls in place of its own decoding loop, with everything prepared."""

    clock: Clock  # runs since generate() was called

    def __init__(
        self, target: Target, drafter: Drafter[Any], shape: TreeConfig | None, seed: int | Sequence[int] | None,
        streamer, on_round: OnRound | None, numbered: bool, capture: bool, policy: Policy | None, reuse: Reuse | None,
        drop: int | None,
    ):  # fmt: skip
        self.target, self.drafter, self.shape, self.seed = target, drafter, shape, seed
        self.capture, self.policy, self.reuse, self.drop = capture, policy, reuse, drop
        self.streamer, self.on_round, self.numbered = streamer, on_round, numbered
        self.output: GenerateOutput | None = None

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        refuse_unsupported(generation_config)
        refuse_all_padding(input_ids, model_kwargs.get("attention_mask"))
        given, input_ids = input_ids.device, input_ids.to(self.target.device)
        padding, seed = padding_of(input_ids, model_kwargs), self._seed(bool(generation_config.do_sample))
        rules = rules_from(generation_config, logits_processor, seed, input_ids.shape[1], padding.tolist())
        clock, out = self.clock, Batch(input_ids, stopping_criteria, self.streamer)
        clock.all_so_far("prefill")  # from 5.24 on transformers encodes the videos before it calls this
        policy, shape = self.policy, self.policy.largest if self.policy else self.shape or Root()
        (b, p), depth = input_ids.shape, shape.max_path - 1
        stats = DecodeStats(tree="auto" if policy else str(shape), depth=depth, sequences=b)
        most = generation_config.max_length - p
        with clock.stage("prefill"):
            if self.reuse is not None:
                model_kwargs = self.reuse.enter(input_ids, model_kwargs)
            portions = Portions(self.drafter.text_states, generation_config.prefill_chunk_size, self.drop)
            room, cache = self._memory(rules, p + most + shape.nodes, input_ids, portions)
            state = start(
                self.target, self.drafter, input_ids, model_kwargs, rules, most, shape, cache, self.reuse, portions
            )
            if room is not None:
                room.keep(cache)
        if policy:
            state.scores = torch.zeros(b, policy.candidates, dtype=torch.float32, pin_memory=state.root.is_cuda)
        rounds = Rounds(self.target, self.drafter, state, shape, clock, out.stops, room)
        behind, prompts = state.position.clone(), cache.rows
        if self.numbered:
            self.target.keep_offset(state.position, p)
        out.emit([[token] for token in state.root.tolist()])
        self._leave(out, rounds)
        with self.target.verifying():
            while out.going:
                self._round(rounds, out, clock, stats)
            cache.fixed = False
            cache.bring_back()
            with clock.stage("verify"):
                self._run_ends(out, cache, prompts, behind)
        sequences = out.sequences(_padding(generation_config))
        cache.put_back()
        length = sequences.shape[1] - 1
        if self.reuse is None:
            cache.level(length)
        else:
            cache.set_length(length - len(self.reuse.gone))
            self.reuse.leave(sequences, cache, room, state)
            stats.reused_tokens = self.reuse.first
        if self.streamer is not None:
            self.streamer.end()
        stats.prompt_tokens, stats.new_tokens = b * p, sum(one.count for one in out.all)
        stats.visual_tokens = int((~self.target.is_text(input_ids)).sum())
        stats.trees = {} if policy is None else {str(tree): rounds for tree, rounds in policy.trees.items()}
        clock.write(stats)
        self.output = GenerateOutput(sequences.to(given), stats, cache)
        return self.output.sequences

    def _memory(
        self, rules: SamplingRules, capacity: int, ids: Tensor, portions: Portions
    ) -> tuple[Room | None, TargetCache]:
        """A cache for so many rows, and the memory it lies in where rounds are to be captured on it."""
        if portions.drop_layer is not None:
            rows = portions.rows(self.target.is_text(ids))
            assert rows is not None
            return None, SplitCache(self.target.num_layers, capacity, portions.drop_layer, int((~rows).sum()))
        captured = self.capture and len(ids) == 1 and capturable(self.target, self.drafter, rules)
        if self.reuse is not None:
            capacity = -(-capacity // BUCKET) * BUCKET
            if (own := self.reuse.memory(capacity)) is not None:
                return own[0] if captured else None, own[1]
        room = room_for(self.target, self.drafter, rules, capacity) if captured else None
        return room, self.target.new_cache(capacity) if room is None else room.lend(self.target)

    def _seed(self, sampling: bool) -> int | tuple[int, ...]:
        if self.seed is None:
            return int(torch.randint(2**62, ())) if sampling else 0
        return tuple(map(int, self.seed)) if isinstance(self.seed, Sequence) else int(self.seed)

    def _round(self, rounds: Rounds, out: Batch, clock: Clock, stats: DecodeStats) -> None:
        """One round: its tokens emitted, counted and told; sequences that are done leave."""
        begun, drafting, policy, going = time.perf_counter(), clock.spent("draft"), self.policy, list(out.going)
        if policy:
            rounds.use(policy.shape)
        tokens = rounds()
        accepted = [len(new) - 1 for new in tokens]
        seconds, tokens = time.perf_counter() - begun, out.emit(tokens)
        if policy:
            drafting = clock.spent("draft") - drafting
            with clock.stage("draft"):  # the choice of a tree is a part of drafting
                policy.saw(accepted, drafting, seconds - drafting, rounds.scores, rounds.settled)
        stats.emitted += map(len, tokens)
        stats.accepted += accepted
        if self.on_round is not None:
            of = {which: (new, right) for which, new, right in zip(going, tokens, accepted, strict=True)}
            told = [of.get(which, ([], 0)) for which in range(len(out.all))]
            new, right = map(list, zip(*told, strict=True)) if len(told) > 1 else told[0]
            self.on_round(new, right, seconds)
        self._leave(out, rounds)

    def _run_ends(self, out: Batch, cache: TargetCache, prompts: list[int], position: Tensor) -> None:
        """The last tokens of sequences that are shorter than others: a cache from which a batch goes on has them.

        prompts: each one's rows of the prompt; position: int64 [..., B, 1], of the first tokens behind them.
        """
        counts, rows = [one.count for one in out.all], cache.rows
        lacking = [w for w, n in enumerate(counts) if n < max(counts) and rows[w] < prompts[w] + n]
        if lacking:
            order = to_the_front(lacking)
            tokens = torch.tensor([[int(out.all[which].ids[0, -1])] for which in order], device=position.device)
            further = torch.tensor([[counts[which] - 1] for which in order], device=position.device)
            run_last(self.target, cache, order, tokens, position[..., order, :] + further)

    def _leave(self, out: Batch, rounds: Rounds) -> None:
        order = out.leave()
        if order:
            rounds.select(order)
            if self.policy:
                self.policy.batch(self.target.model, self.drafter, len(order))


def _padding(config) -> int:
    """pad_token_id as transformers' generate has it; 0 where there is none."""
    return 0 if config._pad_token_tensor is None else int(config._pad_token_tensor)
