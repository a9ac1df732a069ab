#pragma once
#include <cuda_runtime_api.h>

#include "ops/tree_rerank.h"

namespace sparrow {
// One block per tree; p.scratch holds [B, C]. An entry whose parent does not lie in [-1, i) is never kept
// (kBadParent). Returns the launch's error.
cudaError_t tree_rerank_cuda(const TreeRerankParams& p, cudaStream_t stream);
}  // namespace sparrow
