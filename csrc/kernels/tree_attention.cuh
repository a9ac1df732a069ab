#pragma once
#include <cuda_runtime_api.h>

#include "ops/tree_attention.h"

namespace sparrow {
// p.split_keys: the caller's split size, 0 = our own; p.splits: attention_grid_splits of p.max_prefix.
// `shared_limit`: bytes of shared memory a block may have on this device. Returns the launches' error.
cudaError_t tree_attention_cuda(const TreeAttentionParams& p, int64_t shared_limit, cudaStream_t stream);
}  // namespace sparrow
