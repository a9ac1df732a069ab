#pragma once
#include <cuda_runtime_api.h>

#include "ops/tree_expand.h"

namespace sparrow {
// One block per sequence. beam_index is copied to the history as it comes (tree_rerank drops entries with a bad one)
// and sets kBadParent. Returns the launch's error.
cudaError_t tree_expand_cuda(const TreeExpandParams& p, cudaStream_t stream);
}  // namespace sparrow
