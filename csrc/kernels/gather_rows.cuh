#pragma once
#include <cuda_runtime_api.h>

#include "ops/gather_rows.h"

namespace sparrow {
// One block (or more, for a long row) per entry of index. Counts are clamped to [0, I] (kBadCount); an entry outside
// src or a target outside dst is skipped (kBadIndex). Returns the launch's error.
cudaError_t gather_rows_cuda(const GatherRowsParams& p, cudaStream_t stream);
}  // namespace sparrow
