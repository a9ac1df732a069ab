"""sparrow's operators. Importing this package makes them available as `torch.ops.sparrow.*`, too."""

from sparrow_ext._library import build_report, cpu_isa, gpu_warning, has_cuda_kernels, require_backend, set_cpu_isa
from sparrow_ext.errors import error_word, raise_for_error
from sparrow_ext.ops.add_rms_norm import add_rms_norm
from sparrow_ext.ops.argmax_rows import argmax_rows
from sparrow_ext.ops.draft_attention import draft_attention, draft_attention_workspace_size
from sparrow_ext.ops.gather_rows import gather_rows
from sparrow_ext.ops.gumbel_noise import gumbel_noise
from sparrow_ext.ops.hsr_project import fold_embedding, hsr_project
from sparrow_ext.ops.kv_commit import kv_commit, kv_commit_layers
from sparrow_ext.ops.lm_head_topk import lm_head_topk
from sparrow_ext.ops.repetition_penalty import repetition_penalty
from sparrow_ext.ops.rope_append import rope_append
from sparrow_ext.ops.sample_rows import sample_rows
from sparrow_ext.ops.silu_mul import silu_mul
from sparrow_ext.ops.skinny_linear import skinny_linear, skinny_linear_group, skinny_linear_workspace_size
from sparrow_ext.ops.text_compact import text_compact
from sparrow_ext.ops.topk_lse import topk_lse
from sparrow_ext.ops.tree_accept import tree_accept
from sparrow_ext.ops.tree_attention import tree_attention, tree_attention_out, tree_attention_workspace_size
from sparrow_ext.ops.tree_expand import tree_expand
from sparrow_ext.ops.tree_mask import tree_mask
from sparrow_ext.ops.tree_rerank import tree_rerank

__all__ = [
    "add_rms_norm", "argmax_rows", "build_report", "cpu_isa", "draft_attention", "draft_attention_workspace_size",
    "error_word", "fold_embedding", "gather_rows", "gpu_warning", "gumbel_noise", "has_cuda_kernels", "hsr_project",
    "kv_commit", "kv_commit_layers", "lm_head_topk", "raise_for_error", "repetition_penalty", "require_backend",
    "rope_append", "sample_rows", "set_cpu_isa", "silu_mul", "skinny_linear", "skinny_linear_group",
    "skinny_linear_workspace_size", "text_compact", "topk_lse", "tree_accept", "tree_attention", "tree_attention_out",
    "tree_attention_workspace_size", "tree_expand", "tree_mask", "tree_rerank",
]  # fmt: skip
