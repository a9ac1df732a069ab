"""sparrow inside vLLM's V1 model runner: a chain proposer, through `method="custom_class"`.

    vllm serve TARGET --speculative-config '{"method": "custom_class",
      "model": "sparrow.engines.vllm.SparrowProposer", "num_speculative_tokens": 4}'
      --additional-config '{"sparrow": {"drafter": "FOLDER"}}'

No file of vLLM is changed. What of it this module relies on is named in docs/engines.md and checked by
`sparrow.engines.vllm_contract` when the proposer is made.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.logger import init_logger

from sparrow.drafters.network import SparrowDrafter
from sparrow.engines import vllm_contract
from sparrow.engines.chain import ChainDrafter, check_drafter
from sparrow.engines.rows import Step
from sparrow.engines.store import RowStore, columns_per_token
from sparrow.engines.vllm_cache import RowCache
from sparrow.targets.adapter import fingerprint_of, head_rows

RENUMBERED = ("qwen2_vl", "qwen2_5_vl")  # where vLLM's text after a visual block is numbered unlike transformers'
logger = init_logger("vllm.sparrow")  # below vLLM's own, so that its handlers and level apply


@dataclass(frozen=True)
class Options:
    """The object "sparrow" in vLLM's additional_config.

    Attributes:
        drafter: folder of a SparrowDrafter.
        text_rows: text tokens, prompt and answer, with which a request still drafts; 0 = 2048, or the longest sequence
            where that is shorter.
    """

    drafter: str
    text_rows: int = 0

    @classmethod
    def of(cls, config: Any) -> "Options":
        own = (config.additional_config or {}).get("sparrow")
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(own, dict) or "drafter" not in own or not own.keys() <= known:
            raise ValueError(
                f'sparrow: additional_config must hold {{"sparrow": {{"drafter": FOLDER}}}}, with no keys but '
                f"{', '.join(sorted(known))}; got {own!r}"
            )
        made = cls(**own)
        if not isinstance(made.text_rows, int) or made.text_rows < 0:
            raise ValueError(f"sparrow: text_rows must be an integer of at least 0, got {made.text_rows!r}")
        longest = int(config.model_config.max_model_len)
        return dataclasses.replace(made, text_rows=min(made.text_rows or 2048, longest))


class SparrowProposer:
    """What vLLM makes of `model` in its speculative config; one per worker process.

    Raises:
        ValueError: an option, a drafter or a feature of the engine that is not supported; the message names it.
        RuntimeError: a vLLM that lacks what this module relies on.
    """

    def __init__(self, vllm_config: Any):
        vllm_contract.check()
        vllm_contract.refuse(vllm_config)
        self.options = Options.of(vllm_config)
        self.config = vllm_config
        self.most = int(vllm_config.speculative_config.num_speculative_tokens)
        self.drafter = SparrowDrafter.from_pretrained(self.options.drafter)
        check_drafter(self.drafter)
        self.slots: dict[str, int] = {}
        vllm_contract.install()

    def propose(self, *_: Any, **__: Any) -> list[list[int]]:
        raise RuntimeError("sparrow: vLLM called propose() itself: its propose_draft_token_ids is not the wrapped one")

    def load_model(self, target: Any) -> None:
        """Binds to the target's tables and takes all memory it will ever have, before vLLM measures what is left."""
        config, c = self.config, self.drafter.config
        language = target.get_language_model() if hasattr(target, "get_language_model") else target
        vocab = int(config.model_config.get_vocab_size())
        table = _whole(language.model.embed_tokens, vocab)
        tied = language.lm_head.weight.data_ptr() == language.model.embed_tokens.weight.data_ptr()
        head = torch.nn.Linear(1, 1, bias=False, device="meta")
        head.weight = torch.nn.Parameter(table if tied else _whole(language.lm_head, vocab), requires_grad=False)
        self._check_target(table, head.weight)
        self.drafter.place(table.device, table.dtype).bind(table, head, language.model.norm)
        block, longest = int(config.cache_config.block_size), int(config.model_config.max_model_len)
        requests = int(config.scheduler_config.max_num_seqs)
        self.chain = ChainDrafter(self.drafter, requests, longest, self.options.text_rows, self.most, block)
        columns = columns_per_token(c.num_kv_heads, c.head_dim, c.hidden_size, block)
        layers = int(config.model_config.hf_text_config.num_hidden_layers)
        self.cache = RowCache(config, f"sparrow.layers.{layers}.rows", columns, table.dtype)
        logger.info(
            "sparrow: drafter %s, at most %d drafts a step, %d text rows for each of %d requests (%.0f MiB) and %d "
            "bytes per token of vLLM's KV cache",
            self.options.drafter, self.most, self.options.text_rows, requests,
            2 * self.chain.keys.nbytes / 2**20, columns * table.element_size(),
        )  # fmt: skip

    def _check_target(self, table: Tensor, head: Tensor) -> None:
        """Raises ValueError where the drafter was made for another target."""
        want, text = self.drafter.config.target, self.config.model_config.hf_text_config
        family = str(self.config.model_config.hf_config.model_type)
        for key, value in fingerprint_of(family, text, len(table), head_rows(head)).items():
            if want.get(key) != value:
                raise ValueError(f"sparrow: the drafter's target has {key}={want.get(key)!r}, this one {value!r}")
        if family in RENUMBERED and self.drafter.config.numbering != "reference":
            logger.warning(
                "sparrow: vLLM numbers prompts of %s by the rule 'reference', this drafter was trained under '%s': "
                "fewer drafts are accepted (to train one: states.positions=reference)",
                family, self.drafter.config.numbering,
            )  # fmt: skip

    @torch.no_grad()
    def propose_step(
        self, runner: Any, scheduled: Any, sampled: list[list[int]], states: Tensor, slot_mappings: dict[str, Tensor]
    ) -> list[list[int]]:
        """Drafts after one step of the runner, in place of its propose_draft_token_ids."""
        # vLLM drafts for no request of a step where one of them is about to reach the longest length, and would leave
        # rows out; it cuts drafts that reach beyond it by itself.
        runner.effective_drafter_max_model_len = runner.max_model_len + self.most
        batch = runner.input_batch
        names = batch.req_ids
        counts = scheduled.num_scheduled_tokens
        drafted = scheduled.scheduled_spec_decode_tokens
        ran = np.fromiter((counts[name] for name in names), np.int64, len(names))
        spec = np.fromiter((len(drafted.get(name, ())) for name in names), np.int64, len(names))
        drawn = np.fromiter(map(len, sampled), np.int64, len(names))
        step = Step(
            slots=torch.tensor(self._slots_of(names, runner.requests)),
            start=torch.from_numpy(batch.num_computed_tokens_cpu[: len(names)].astype(np.int64)),
            scheduled=torch.from_numpy(ran),
            true=torch.from_numpy(np.where(drawn > 0, ran - spec + drawn - 1, ran)),
            sampled=torch.from_numpy(drawn > 0),
        )
        group = self._group(runner)
        block = self.config.cache_config.block_size

        def kv_slots_of(request: int, positions: Tensor) -> Tensor:
            blocks = torch.tensor(runner.requests[names[request]].block_ids[group])
            return (blocks[positions // block] * block + positions % block).to(states.device)

        kv_slots = slot_mappings[self.cache.name][: int(ran.sum())]
        length = min(self.most, int(scheduled.num_spec_tokens_to_schedule))
        who, drafts, _ = self.chain.after(
            step, torch.from_numpy(batch.token_ids_cpu), states, self._store(), kv_slots, kv_slots_of, length
        )
        made: list[list[int]] = [[] for _ in names]
        for request, draft in zip(who.tolist(), drafts.tolist(), strict=True):
            made[request] = draft
        return made

    def _group(self, runner: Any) -> int:
        groups = runner.kv_cache_config.kv_cache_groups
        return next(i for i, group in enumerate(groups) if self.cache.name in group.layer_names)

    def _store(self) -> RowStore:
        c = self.drafter.config
        block = int(self.config.cache_config.block_size)
        return RowStore(self.cache.kv_cache, block, c.num_kv_heads, c.head_dim, c.hidden_size)

    def _slots_of(self, names: list[str], requests: dict[str, Any]) -> list[int]:
        """Each request's slot; new requests get the lowest free ones, and those that left give theirs back."""
        for gone in self.slots.keys() - requests.keys():
            del self.slots[gone]
        if missing := [name for name in names if name not in self.slots]:
            free = sorted(set(range(len(self.chain.keys))) - set(self.slots.values()))
            idle = [name for name in self.slots if name not in set(names)]  # preempted ones: the store has their rows
            while len(free) < len(missing):
                free.append(self.slots.pop(idle.pop(0)))
            for name, slot in zip(missing, free, strict=False):
                self.slots[name] = slot
                self.chain.book.open(slot, _is_text(requests[name]))
        return [self.slots[name] for name in names]


def _is_text(request: Any) -> Tensor:
    """Which tokens of a request's prompt are text, bool [P]."""
    text = torch.ones(len(request.prompt_token_ids), dtype=torch.bool)
    for feature in request.mm_features:
        at, embedded = feature.mm_position, feature.mm_position.is_embed
        text[at.offset : at.offset + at.length] = False if embedded is None else ~embedded.cpu()
    return text


def _whole(layer: Any, vocab: int) -> Tensor:
    """A vocabulary table [V, E], gathered where tensor parallelism splits it: every rank drafts by itself, the same."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or getattr(layer, "bias", None) is not None:
        raise ValueError(f"sparrow: {type(layer).__name__} must be a plain weight without bias: no quantised tables")
    if get_tensor_model_parallel_world_size() > 1:
        weight = tensor_model_parallel_all_gather(weight.data, dim=0)
    return weight[:vocab]
