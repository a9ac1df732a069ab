#pragma once
#include <cuda_runtime_api.h>

#include "ops/draft_attention.h"

namespace sparrow {
// As tree_attention_cuda. On matrix units one launch ropes, appends and attends, a second one combines the splits where
// there are several; else two or three launches with the roped queries in p.roped.
cudaError_t draft_attention_cuda(const DraftAttentionParams& p, int64_t shared_limit, cudaStream_t stream);
}  // namespace sparrow
