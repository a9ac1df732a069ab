#pragma once
#include <cuda_runtime_api.h>

#include "kernels/topk.cuh"
#include "ops/lm_head_topk.h"

namespace sparrow {

// A block takes this many tiles of 64 vocabulary rows: few enough lists for the merge, blocks enough to fill a GPU.
// 512: an H200 holds 132 SMs x 4 blocks at a time. 152064 rows: 5 tiles in 476 blocks; 32000 rows: 1 tile in 500.
constexpr int64_t kLmHeadTile = 64, kLmHeadLists = 512;
static_assert(kLmHeadLists <= kTopkLists, "the merge's limit");
constexpr int64_t lm_head_tiles_per_block(int64_t vocab) {
  return ((vocab + kLmHeadTile - 1) / kLmHeadTile + kLmHeadLists - 1) / kLmHeadLists;
}
constexpr int64_t lm_head_lists(int64_t vocab) {
  const int64_t rows = lm_head_tiles_per_block(vocab) * kLmHeadTile;
  return (vocab + rows - 1) / rows;
}

// bf16 and fp16: the partial results of rows [first, first + rows) of h, rows <= kSkinnyRows; p.parts.chunks =
// lm_head_lists(V), entry (m, list) = m * chunks + list. p.packed is not used. topk_merge_cuda finishes.
cudaError_t lm_head_topk_cuda(const LmHeadTopkParams& p, cudaStream_t stream);
// float32: the logits [rows, V] of those rows, dense.
cudaError_t lm_head_logits_cuda(const LmHeadTopkParams& p, float* logits, cudaStream_t stream);

}  // namespace sparrow
