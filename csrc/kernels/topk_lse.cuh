#pragma once
#include <cuda_runtime_api.h>

#include "kernels/topk.cuh"

namespace sparrow {

// 128 threads x 32 elements held in registers.
constexpr int64_t kTopkTile = 4096;
// A block's stretch of a row: whole tiles, at most 64 blocks for vocabularies up to 262144 take one tile each.
constexpr int64_t kTopkCudaLists = 64;
static_assert(kTopkCudaLists <= kTopkLists, "the merge's limit");
constexpr int64_t topk_cuda_chunk(int64_t vocab) {
  const int64_t tiles = (vocab + kTopkTile - 1) / kTopkTile;
  return (tiles + kTopkCudaLists - 1) / kTopkCudaLists * kTopkTile;
}
constexpr int64_t topk_cuda_lists(int64_t vocab) {
  return (vocab + topk_cuda_chunk(vocab) - 1) / topk_cuda_chunk(vocab);
}

// Fills p.parts, parts.chunks = topk_cuda_lists(V); topk_merge_cuda finishes.
cudaError_t topk_lse_cuda(const TopkLseParams& p, int64_t rows, cudaStream_t stream);

}  // namespace sparrow
