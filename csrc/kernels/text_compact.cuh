#pragma once
#include <cuda_runtime_api.h>

#include "ops/text_compact.h"

namespace sparrow {
// One block per sequence. Lengths are clamped to [0, S]; rows beyond max_text are counted, not written: the caller
// compares count with max_text. Returns the launch's error.
cudaError_t text_compact_cuda(const TextCompactParams& p, cudaStream_t stream);
}  // namespace sparrow
