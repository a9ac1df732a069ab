// draft_attention: the drafter's rotary embedding, cache append and attention of T new rows.
//   row i of qkv = H queries, K keys, K values. Its key is roped; key and value go to cache row
//   lens + tree_start + i; its roped queries attend the text rows (all, or anchors and a window) and the tree slots
//   of its words. Rows >= num_rows are not looked at: neither cache nor output changes.
// Two steps: this kernel ropes and appends; tree_attention's kernels attend. The roped queries are kept in the
// workspace in the cache's dtype, so the result equals rope_append + tree_attention bit for bit.
#pragma once
#include "ops/tree_attention.h"

namespace sparrow {

struct DraftAttentionParams {
  TreeAttentionParams attention;  // q = the roped queries [B, T, H, D] in the workspace, contiguous
  const void* qkv;                // [B, T, (H + 2 K) D]
  int64_t qkv_b, qkv_t;
  const float* cos_sin;     // [B, T, D]
  void *k_cache, *v_cache;  // attention.k and attention.v, to be written
  void* roped;              // attention.q, to be written
};

// Bytes: the roped queries (at most 4 per element), then attention_workspace.
inline int64_t draft_attention_roped(int64_t batch, int64_t rows, int64_t heads, int64_t dim) {
  return (product(batch, rows, heads, dim, 4) + 63) / 64 * 64;
}

// One item = one row of one sequence.
SPARROW_CPU_KERNEL(draft_attention_append_cpu, DraftAttentionParams)

}  // namespace sparrow
