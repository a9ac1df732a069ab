// lm_head_topk: topk_lse(h @ weight^T) without the logits in memory: each tile of the vocabulary goes from the skinny
// GEMM's registers through a small buffer into the running (maximum, sum, top-k) of its chunk.
#pragma once
#include "ops/skinny.h"
#include "ops/topk_lse.h"

namespace sparrow {

struct LmHeadTopkParams {
  const void* h;                       // row m at (m / inner) * outer_stride + (m % inner) * inner_stride, dense
  int64_t inner;                       // rows of the second-to-last dimension
  int64_t outer_stride, inner_stride;  // elements
  const void* weight;                  // [V, E], dense rows
  int64_t weight_stride;
  void* packed;                // scratch: packed_bytes(M, E) bytes, 64-byte aligned
  int64_t rows, width, vocab;  // M <= kSkinnyRows, E, V < 2^31
  DType dtype;
  TopkPartials parts;
};

// Stage 1, pack_items(M) items: packs h. Stage 2, one item = one chunk of the vocabulary, all rows.
// Both stages must run on the same instruction set. topk_merge_cpu finishes.
constexpr int64_t kLmHeadChunk = 960;
SPARROW_CPU_KERNEL(lm_head_pack_cpu, LmHeadTopkParams)
SPARROW_CPU_KERNEL(lm_head_topk_cpu, LmHeadTopkParams)

}  // namespace sparrow
