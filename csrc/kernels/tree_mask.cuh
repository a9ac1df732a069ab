#pragma once
#include <cuda_runtime_api.h>

#include "ops/tree_mask.h"

namespace sparrow {
// One warp per tree. A bad parent makes the node a root that sees itself only, and sets kBadParent. Returns the
// launch's error.
cudaError_t tree_mask_cuda(const TreeMaskParams& p, cudaStream_t stream);
}  // namespace sparrow
