#pragma once
#include <cuda_runtime_api.h>

#include "kernels/topk.cuh"

namespace sparrow {

static_assert(kTopkCudaLists <= kTopkLists, "the merge's limit");

// Fills p.parts, parts.chunks = topk_cuda_lists(V); topk_merge_cuda finishes.
cudaError_t topk_lse_cuda(const TopkLseParams& p, int64_t rows, cudaStream_t stream);

}  // namespace sparrow
