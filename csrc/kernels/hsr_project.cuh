#pragma once
#include <cuda_runtime_api.h>

#include "ops/hsr_project.h"

namespace sparrow {

// Rows whose index lies outside its table take zeros for that half (kBadIndex). num_rows is clamped to [0, M]
// (kBadCount).

// M <= kSkinnyRows in bf16 and fp16 (p.partial is used), any M in float32. A row's bits do not depend on M.
cudaError_t hsr_project_cuda(const HsrProjectParams& p, cudaStream_t stream);

// For the library's GEMM, bf16 and fp16: rows [begin, begin + count) gathered into x [count, E + H], dense, ...
cudaError_t hsr_gather_cuda(const HsrProjectParams& p, int64_t begin, int64_t count, void* x, cudaStream_t stream);
// ... and its products y [count, O], dense, copied into the valid rows of out.
cudaError_t hsr_scatter_cuda(const HsrProjectParams& p, int64_t begin, int64_t count, const void* y,
                             cudaStream_t stream);

}  // namespace sparrow
