"""sparrow inside vLLM's V2 model runner (VLLM_USE_V2_MODEL_RUNNER=1): the same command line, drafter and store."""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from sparrow.engines import vllm_contract
from sparrow.engines.rows import Step
from sparrow.engines.vllm_drafting import Drafting, is_text


class SparrowSpeculator(Drafting, DraftModelSpeculator):
    """What the V2 runner asks for drafts. Each request's slot is the runner's own; the store has the drafter's rows.

    The numbers of accepted tokens are known on the device alone: one copy to the host per step.

    Raises:
        ValueError: an option, a drafter or a feature of the engine that is not supported; the message names it.
        RuntimeError: a vLLM that lacks what this module relies on.
    """

    def __init__(self, vllm_config: Any, device: torch.device, req_states: Any):
        vllm_contract.check(vllm_contract.faults_v2())
        vllm_contract.refuse(vllm_config)
        DraftModelSpeculator.__init__(self, vllm_config, device)
        Drafting.__init__(self, vllm_config)
        if self.options.adaptive or self.options.least:
            raise ValueError("sparrow: the V2 runner verifies num_speculative_tokens drafts: no adaptive, no least")
        self.requests = req_states
        self.names: dict[int, str] = {}

    def load_draft_model(self, target_model: torch.nn.Module, target_attn_layer_names: set[str]) -> torch.nn.Module:
        """The drafter, bound; all memory it will ever have is taken before vLLM measures what is left."""
        self.load(target_model)
        return self.drafter

    def set_attn(self, model_state: Any, kv_cache_config: Any, block_tables: Any, *_: Any) -> None:
        """Where prompts' images and videos are known, and the engine's block tables."""
        self.model_state, self.kv_cache_config, self.block_tables = model_state, kv_cache_config, block_tables

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """Drafts run outside of graphs."""

    def capture(self) -> None:
        """Nothing is captured."""

    @torch.no_grad()
    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: dict[str, Tensor],
        last_hidden_states: Tensor,
        aux_hidden_states: Any,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        *_: Any,
        dummy_run: bool = False,
        num_speculative_tokens: int | None = None,
        **__: Any,
    ) -> Tensor:
        """Drafts after one step, int64 [requests, most]; a request that does not draft gets tokens 0."""
        count = input_batch.num_reqs
        made = self.draft_tokens[:count].zero_()
        if dummy_run:
            return made
        ran = torch.from_numpy(input_batch.num_scheduled_tokens[:count]).long()
        first = ran.cumsum(0) - ran
        starts = input_batch.positions[first.to(input_batch.positions.device)]
        known = torch.stack([starts, num_sampled[:count].long(), num_rejected[:count].long()]).cpu()
        start, sampled, rejected = known.unbind(0)
        rows = torch.from_numpy(input_batch.idx_mapping_np[:count]).long()
        self._open(input_batch.req_ids, rows.tolist())
        step = Step(slots=rows, start=start, scheduled=ran, true=ran - rejected, sampled=sampled > 0)
        table = self.block_tables.block_tables[self.group(self.kv_cache_config)].gpu
        block, tokens = int(self.config.cache_config.block_size), self.requests.all_token_ids.gpu

        def kv_slots_of(request: int, positions: Tensor) -> Tensor:
            at = positions.to(table.device)
            return table[rows[request], at // block].long() * block + at % block

        def tokens_at(request: Tensor, position: Tensor) -> Tensor:
            return tokens[rows[request].to(tokens.device), position.to(tokens.device)]

        length = self.most if num_speculative_tokens is None else min(self.most, num_speculative_tokens)
        kv_slots = slot_mappings[self.cache.name][: int(ran.sum())]
        after = self.chain.after(step, tokens_at, last_hidden_states, self.store(), kv_slots, kv_slots_of, length)
        who, drafts = after[:2]
        made[who.to(made.device), :length] = drafts
        return made

    def _open(self, names: list[str], rows: list[int]) -> None:
        """Tells the book of requests that are new in their rows."""
        for name, row in zip(names, rows, strict=True):
            if self.names.get(row) != name:
                self.names[row] = name
                features = self.model_state.encoder_runner.encoder_cache.mm_features.get(name, [])
                self.chain.book.open(row, is_text(int(self.requests.prompt_len.np[row]), features))
