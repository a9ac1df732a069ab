#pragma once
#include <cuda_runtime_api.h>

#include "ops/tree_accept.h"

namespace sparrow {
// One warp per tree. Counts are clamped to [0, N] (kBadCount); a node whose parent is not below it is never accepted
// (kBadParent). Returns the launch's error.
cudaError_t tree_accept_cuda(const TreeAcceptParams& p, cudaStream_t stream);
}  // namespace sparrow
