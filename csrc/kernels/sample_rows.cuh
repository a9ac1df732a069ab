#pragma once
#include <cuda_runtime_api.h>

#include "ops/sample_rows.h"

namespace sparrow {

// scratch: sample_rows_workspace_bytes, 8-byte aligned; p.block_max is not used. A temperature that is neither 0 nor in
// [kMinTemperature, inf] counts as 0, a negative top_k or a top_p that is NaN as off, a negative top_p as 0.
cudaError_t sample_rows_cuda(const SampleRowsParams& p, void* scratch, cudaStream_t stream);

}  // namespace sparrow
