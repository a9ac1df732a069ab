#pragma once
#include <cuda_runtime_api.h>

#include "ops/kv_commit.h"

namespace sparrow {
// One launch for all key and value tensors of p, sequences, hidden rows and lengths. A path entry that would read
// outside the cache (or hidden) or below its own row is skipped; counts are clamped to [0, P], new lengths to [0, S].
// Sets kBadIndex or kBadCount. Returns the launch's error.
cudaError_t kv_commit_cuda(const KvCommitParams& p, cudaStream_t stream);
}  // namespace sparrow
