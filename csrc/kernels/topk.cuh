// Top-k and log-sum-exp on CUDA: what topk_lse and lm_head_topk share on the host.
//   Partial results of [rows, lists]: stat (maximum, sum of exp(x - maximum)) and k keys (value, index), descending,
//   0 = unused. A key holds its index, so keys are distinct and their order is the operator's: value descending, index
//   ascending, NaN = -inf. Selecting by key is exact in whatever order entries come.
#pragma once
#include <cuda_runtime_api.h>

#include "ops/topk_lse.h"

namespace sparrow {

// Lists per row that the merge takes: their heads live in 8 KB of shared memory.
constexpr int64_t kTopkLists = 1024;

// The keys take the room of TopkPartials' values and indices: 8 bytes each, 8-byte aligned.
inline uint64_t* topk_keys(const TopkPartials& parts) { return reinterpret_cast<uint64_t*>(parts.value); }

// Merges the partial results of `rows` rows; parts.chunks <= kTopkLists.
cudaError_t topk_merge_cuda(const TopkMergeParams& p, int64_t rows, cudaStream_t stream);

}  // namespace sparrow
