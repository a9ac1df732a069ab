"""sparrow inside vLLM's V1 model runner: a chain proposer, through `method="custom_class"`.

    vllm serve TARGET --speculative-config '{"method": "custom_class",
      "model": "sparrow.engines.vllm.SparrowProposer", "num_speculative_tokens": 4}'
      --additional-config '{"sparrow": {"drafter": "FOLDER"}}'

No file of vLLM is changed. What of it this module relies on is named in docs/engines.md and checked by
`sparrow.engines.vllm_contract` when the proposer is made.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparrow.engines import vllm_contract
from sparrow.engines.chain import worth_verifying
from sparrow.engines.pace import Pace
from sparrow.engines.rows import Step
from sparrow.engines.vllm_drafting import Drafting, is_text


class SparrowProposer(Drafting):
    """What vLLM makes of `model` in its speculative config; one per worker process.

    Raises:
        ValueError: an option, a drafter or a feature of the engine that is not supported; the message names it.
        RuntimeError: a vLLM that lacks what this module relies on.
    """

    def __init__(self, vllm_config: Any):
        vllm_contract.check(vllm_contract.faults())
        vllm_contract.refuse(vllm_config)
        super().__init__(vllm_config)
        self.slots: dict[str, int] = {}
        self.pace = Pace(self.most) if self.options.adaptive else None
        self.last: tuple[list[str], int, float] = ([], 0, 0.0)  # requests, drafts and time of the step before
        vllm_contract.install()

    def propose(self, *_: Any, **__: Any) -> list[list[int]]:
        raise RuntimeError("sparrow: vLLM called propose() itself: its propose_draft_token_ids is not the wrapped one")

    def load_model(self, target: Any) -> None:
        self.load(target)

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
            slots=torch.tensor(self._slots_of(names, runner.requests, scheduled.finished_req_ids)),
            start=torch.from_numpy(batch.num_computed_tokens_cpu[: len(names)].astype(np.int64)),
            scheduled=torch.from_numpy(ran),
            true=torch.from_numpy(np.where(drawn > 0, ran - spec + drawn - 1, ran)),
            sampled=torch.from_numpy(drawn > 0),
        )
        group = self.group(runner.kv_cache_config)
        block = self.config.cache_config.block_size

        def kv_slots_of(request: int, positions: Tensor) -> Tensor:
            blocks = torch.tensor(runner.requests[names[request]].block_ids[group])
            return (blocks[positions // block] * block + positions % block).to(states.device)

        kv_slots = slot_mappings[self.cache.name][: int(ran.sum())]
        length = min(self.most, int(scheduled.num_spec_tokens_to_schedule))
        if self.pace:
            length = min(length, self._paced(self.pace, names, ran, spec, drawn))
        tokens = torch.from_numpy(batch.token_ids_cpu)
        who, drafts, confidence = self.chain.after(
            step, lambda *at: tokens[at], states, self.store(), kv_slots, kv_slots_of, length
        )
        kept = worth_verifying(confidence, self.options.least)
        made: list[list[int]] = [[] for _ in names]
        for request, draft, n in zip(who.tolist(), drafts.tolist(), kept.tolist(), strict=True):
            made[request] = draft[:n]
        return made

    def _paced(self, pace: Pace, names: list[str], ran: np.ndarray, spec: np.ndarray, drawn: np.ndarray) -> int:
        """How many to draft; the step just run is measured, with what was drafted before it, where no prompt was."""
        now, (before, length, then) = time.perf_counter(), self.last
        if before == names and (spec <= length).all() and (ran == spec + 1).all():
            pace.observe(len(names), length, now - then, int(drawn.sum()))
        chosen = pace.choose(len(names))
        self.last = (list(names), chosen, now)
        return chosen

    def _slots_of(self, names: list[str], requests: dict[str, Any], finished: set[str]) -> list[int]:
        """Each request's slot; new requests get the lowest free ones, and those that left give theirs back."""
        for gone in self.slots.keys() - requests.keys() | self.slots.keys() & finished:
            del self.slots[gone]
        if missing := [name for name in names if name not in self.slots]:
            free = sorted(set(range(len(self.chain.keys))) - set(self.slots.values()))
            idle = [name for name in self.slots if name not in set(names)]  # preempted ones: the store has their rows
            while len(free) < len(missing):
                free.append(self.slots.pop(idle.pop(0)))
            for name, slot in zip(missing, free, strict=False):
                self.slots[name] = slot
                request = requests[name]
                self.chain.book.open(slot, is_text(len(request.prompt_token_ids), request.mm_features))
        return [self.slots[name] for name in names]
