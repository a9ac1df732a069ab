"""What both of vLLM's model runners give sparrow: options, a drafter bound to the target's tables, memory for it."""

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.logger import init_logger

from sparrow.drafters.network import SparrowDrafter
from sparrow.engines.chain import ChainDrafter, check_drafter
from sparrow.engines.store import RowStore, columns_per_token
from sparrow.engines.vllm_cache import RowCache
from sparrow.engines.vllm_prompts import RENUMBERED, numbering_of
from sparrow.targets.adapter import fingerprint_of, head_rows

logger = init_logger("vllm.sparrow")  # below vLLM's own, so that its handlers and level apply


@dataclass(frozen=True)
class Options:
    """The object "sparrow" in vLLM's additional_config.

    Attributes:
        drafter: folder of a SparrowDrafter.
        text_rows: text tokens, prompt and answer, with which a request still drafts; 0 = 2048, or the longest sequence
            where that is shorter.
        least: drafts to which the drafter itself gives a smaller chance of acceptance are not verified; 0 = all are.
        adaptive: steps are measured, and nothing is drafted at numbers of requests where that is faster.
    """

    drafter: str
    text_rows: int = 0
    least: float = 0.0
    adaptive: bool = False

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
        if not isinstance(made.least, (int, float)) or not 0 <= made.least <= 1:
            raise ValueError(f"sparrow: least must lie in [0, 1], got {made.least!r}")
        if not isinstance(made.adaptive, bool):
            raise ValueError(f"sparrow: adaptive must be true or false, got {made.adaptive!r}")
        longest = int(config.model_config.max_model_len)
        return dataclasses.replace(made, text_rows=min(made.text_rows or 2048, longest))


class Drafting:
    """One per worker process, from vLLM's configuration.

    Raises:
        ValueError: an option, a drafter or a feature of the engine that is not supported; the message names it.
    """

    def __init__(self, config: Any):
        self.options = Options.of(config)
        self.config = config
        self.most = int(config.speculative_config.num_speculative_tokens)
        self.drafter = SparrowDrafter.from_pretrained(self.options.drafter)
        check_drafter(self.drafter)

    def load(self, target: Any) -> None:
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
        own, trained = numbering_of(family), self.drafter.config.numbering
        if family in RENUMBERED and trained != own:
            other = pathlib.Path(f"{self.options.drafter.rstrip('/')}_{own}")
            logger.warning(
                "sparrow: vLLM numbers prompts of %s by the rule '%s', this drafter was trained under '%s': fewer "
                "drafts are accepted (%s)",
                family, own, trained,
                f"{other} was trained so" if other.is_dir() else f"to train it further: states.positions={own}",
            )  # fmt: skip

    def store(self) -> RowStore:
        c = self.drafter.config
        block = int(self.config.cache_config.block_size)
        return RowStore(self.cache.kv_cache, block, c.num_kv_heads, c.head_dim, c.hidden_size)

    def group(self, kv_cache_config: Any) -> int:
        """Which of the engine's groups of layers holds the store."""
        groups = kv_cache_config.kv_cache_groups
        return next(i for i, group in enumerate(groups) if self.cache.name in group.layer_names)


def is_text(prompt: int, features: list[Any]) -> Tensor:
    """Which of a prompt's tokens are text, bool [prompt]; features: what vLLM knows of its images and videos."""
    text = torch.ones(prompt, dtype=torch.bool)
    for feature in features:
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
