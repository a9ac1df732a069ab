// rope_append: rotary embedding of the target's new queries and keys, and the append of keys and values to the cache.
//   q[b,n,h] = rope(q[b,n,h]) in place;   k_cache[b,slot] = rope(k[b,n]), v_cache[b,slot] = v[b,n], slot = slots[b,n]
// Slot -1 appends nothing. Nodes are appended in order: of two nodes with one slot the later stays.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct RopeAppendParams {
  DType dtype;
  void *q, *k_cache, *v_cache;  // q [B, N, H, D], caches [B, S, K, D]; strides in elements, last dimension dense
  const void *k, *v;            // [B, N, K, D]
  int64_t q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, kc_b, kc_s, kc_h, vc_b, vc_s, vc_h;
  const float* cos_sin;  // [B, N, D]
  const int32_t* slots;  // [B, N]: -1 or a cache row; checked on the CPU, others append nothing on CUDA
  int64_t batch, nodes, heads, kv_heads, dim;
  int64_t cache_rows;  // S
};

// One item = one head of one sequence, all nodes: first the H query heads, then the K kv heads.
inline int64_t rope_append_items(const RopeAppendParams& p) { return p.batch * (p.heads + p.kv_heads); }
SPARROW_CPU_KERNEL(rope_append_cpu, RopeAppendParams)

}  // namespace sparrow
