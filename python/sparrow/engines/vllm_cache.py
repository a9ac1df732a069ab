"""A layer without attention, through which vLLM allocates room for draft rows in its own KV cache, block by block.

vLLM counts its bytes where it sizes the cache, numbers it as the target's layers, and keeps a block of it exactly as
long as the prefix in it.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend, AttentionCGSupport, AttentionMetadataBuilder
from vllm.v1.kv_cache_interface import FullAttentionSpec


class _Builder(AttentionMetadataBuilder[None]):
    """Makes no metadata: nothing of this layer runs in the target's forward pass, graphs or not."""

    _cudagraph_support = AttentionCGSupport.ALWAYS

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> None:
        return None


class _Backend(AttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "SPARROW_ROWS"

    @staticmethod
    def get_impl_cls() -> Any:
        raise NotImplementedError("draft rows are kept in vLLM's cache and attended outside")

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        return _Builder


class RowCache(AttentionLayerBase):
    """Registers itself with the engine; `kv_cache` is [blocks, 1, tokens, columns] once vLLM has allocated it.

    Args:
        config: vLLM's.
        name: a layer's name, with one number in it that no other layer has.
        columns: elements per token, even.
        dtype: of an element.
    """

    num_heads = 0  # no queries: a group of its own among the attention backends

    def __init__(self, config: Any, name: str, columns: int, dtype: torch.dtype):
        self.name, self.columns, self.dtype = name, columns, dtype
        self.kv_cache: Tensor = torch.empty(0)
        config.compilation_config.static_forward_context[name] = self

    def get_attn_backend(self) -> type[AttentionBackend]:
        return _Backend

    def get_kv_cache_spec(self, vllm_config: Any) -> FullAttentionSpec:
        block = vllm_config.cache_config.block_size
        return FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=self.columns // 2, dtype=self.dtype)
