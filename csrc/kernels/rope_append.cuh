#pragma once
#include <cuda_runtime_api.h>

#include "ops/rope_append.h"

namespace sparrow {
// One launch. A slot outside the cache appends nothing. Returns the launch's error.
cudaError_t rope_append_cuda(const RopeAppendParams& p, cudaStream_t stream);
}  // namespace sparrow
