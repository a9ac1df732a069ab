#pragma once
#include <cuda_runtime_api.h>

#include "kernels/topk.cuh"
#include "ops/lm_head_topk.h"

namespace sparrow {

static_assert(kLmHeadLists <= kTopkLists, "the merge's limit");

// bf16 and fp16: the partial results of rows [first, first + rows) of h, rows <= kSkinnyRows; p.parts.chunks =
// lm_head_lists(V), entry (m, list) = m * chunks + list. p.packed is not used. topk_merge_cuda finishes.
cudaError_t lm_head_topk_cuda(const LmHeadTopkParams& p, cudaStream_t stream);
// float32: the logits [rows, V] of those rows, dense.
cudaError_t lm_head_logits_cuda(const LmHeadTopkParams& p, float* logits, cudaStream_t stream);

}  // namespace sparrow
