"""What transformers' generate() prepared, as rules for our operators; what we do not support, refused by name."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sparrow.sampling import SamplingRules
from sparrow.targets.versions import CACHE_ARGUMENTS

# Options of generate() that this loop does not have, and the values under which they are off.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
    "guidance_scale": (None, 1, 1.0),
    "prompt_lookup_num_tokens": (None,),
    "cache_implementation": (None,),
    "use_cache": (None, True),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_scores": (None, False),
    "output_logits": (None, False),
    "token_healing": (None, False),
}
# Arguments of generate() (not of its config) that this loop does not have.
REFUSED_ARGUMENTS = (
    "assistant_model", "inputs_embeds", *CACHE_ARGUMENTS, "negative_prompt_ids", "synced_gpus", "custom_generate",
)  # fmt: skip
_OPERATORS = (RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)


def refuse_unsupported(config: GenerationConfig) -> None:
    """Raises ValueError naming the first option that is set and not supported."""
    for name, off in _UNSUPPORTED.items():
        value = getattr(config, name, None)
        if value not in off:
            raise ValueError(f"sparrow.generate does not support {name}={value!r}")
    chunk = getattr(config, "prefill_chunk_size", None)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"prefill_chunk_size must be a positive number of tokens, got {chunk!r}")


def rules_from(
    config: GenerationConfig,
    processors: LogitsProcessorList,
    seed: int | tuple[int, ...],
    prompt: int,
    padding: Sequence[int] = (0,),
) -> SamplingRules:
    """Sampling rules of a prepared generation from prompts of `prompt` tokens, so many of them padding in each.

    Repetition penalty, temperature, top-k and top-p in transformers' own order become operators; a list with anything
    else is kept whole, a copy for each sequence of a batch, and called per visited node.
    """
    sampling = bool(config.do_sample)
    if not _are_operators(processors, prompt, len(padding)):
        own = (processors,) if len(padding) == 1 else tuple(_copy(processors, *one) for one in enumerate(padding))
        return SamplingRules(temperature=1.0 if sampling else 0.0, seed=seed, processors=own)
    values: dict[str, Any] = {}
    for p in processors:
        if isinstance(p, RepetitionPenaltyLogitsProcessor):
            values["repetition_penalty"] = float(p.penalty)
            values["ignored"] = _ignored(p, len(padding))
        elif isinstance(p, TemperatureLogitsWarper):
            values["temperature"] = float(p.temperature)
        elif isinstance(p, TopKLogitsWarper):
            values["top_k"] = int(p.top_k)
        elif isinstance(p, TopPLogitsWarper):
            values["top_p"] = float(p.top_p)
    values.setdefault("temperature", 1.0 if sampling else 0.0)
    return SamplingRules(seed=seed, **values)


def _ignored(penalty: RepetitionPenaltyLogitsProcessor, sequences: int) -> tuple[int, ...]:
    """How many of each sequence's first tokens it does not see: from 5.24 on those of the padding."""
    given = getattr(penalty, "prompt_ignore_length", None)
    each = [int(given or 0)] * sequences if given is None or isinstance(given, int) else given.tolist()
    if len(each) != sequences:
        raise ValueError(f"prompt_ignore_length must be one number, or one for each of {sequences} prompts, got {each}")
    return tuple(each)


def _copy(processors: LogitsProcessorList, which: int, padding: int) -> LogitsProcessorList:
    """One sequence's own, which is asked about its tokens without the padding."""
    own = copy.deepcopy(processors)
    for p in own:
        given = getattr(p, "prompt_ignore_length", None)
        if isinstance(given, Tensor):
            p.prompt_ignore_length = max(0, int(given[which]) - padding)
    return own


def _are_operators(processors: Sequence[object], prompt: int, sequences: int) -> bool:
    """True where the list holds only what our operators do, each at most once, in their order and default form."""
    kinds = [type(p) for p in processors]
    if any(kind not in _OPERATORS for kind in kinds):
        return False
    order = [_OPERATORS.index(kind) for kind in kinds]
    if order != sorted(set(order)):
        return False
    for p in processors:
        if isinstance(p, RepetitionPenaltyLogitsProcessor) and max(_ignored(p, sequences)) > prompt:
            return False
        if getattr(p, "filter_value", -float("inf")) != -float("inf") or getattr(p, "min_tokens_to_keep", 1) != 1:
            return False
    return True


def take_stop_strings(model: PreTrainedModel, options: dict[str, Any]) -> str | list[str] | None:
    """The stop_strings of the caller's generation config, else the model's, hidden from generate(): on the way to a
    custom loop it loses the tokenizer they need.
    """
    given = options.get("generation_config")
    strings = getattr(given, "stop_strings", None)
    if given is not None and strings is not None:
        options["generation_config"] = given = copy.deepcopy(given)
        given.stop_strings = None
    fallback = getattr(model.generation_config, "stop_strings", None)
    if fallback is not None:  # generate() fills what is None from the model's; only an argument stays None
        options["stop_strings"] = None
    return fallback if strings is None else strings


def with_stop_strings(
    criteria: StoppingCriteriaList | None, stop_strings: object, tokenizer: object
) -> StoppingCriteriaList:
    """The user's criteria and one for stop strings (generate() drops the tokenizer on the way to a custom loop)."""
    criteria = StoppingCriteriaList(criteria or [])
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings needs tokenizer=: the strings are compared with decoded text")
        criteria.append(StopStringCriteria(tokenizer, stop_strings))
    return criteria


class Ends:
    """Whether a token ends a sequence, as transformers' stopping criteria say.

    The two of every generation, a longest length and tokens that end it, are looked up here, as they cost some twenty
    microseconds a token otherwise, and are taken as they are when generation begins; all others are called.
    """

    def __init__(self, criteria: Any):
        self.longest, self.tokens = float("inf"), set[int]()
        self.others = StoppingCriteriaList()
        for one in criteria if isinstance(criteria, StoppingCriteriaList) else [criteria]:
            if type(one) is EosTokenCriteria:
                self.tokens.update(one.eos_token_id.flatten().tolist())
            elif type(one) is MaxLengthCriteria and one.max_length <= (one.max_position_embeddings or one.max_length):
                self.longest = min(self.longest, one.max_length)
            else:
                self.others.append(one)

    def at(self, token: int, length: int, ids: Callable[[], Tensor]) -> bool:
        """Of the last of `length` tokens, which `ids` gives as int64 [1, length]."""
        told = bool(self.others) and bool(self.others(ids(), None).all())
        return told or token in self.tokens or length >= self.longest
