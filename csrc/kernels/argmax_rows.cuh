#pragma once
#include <cuda_runtime_api.h>

#include "ops/argmax_rows.h"

namespace sparrow {

// 128 threads x 32 elements: enough loads in flight to hide memory, enough blocks to fill a GPU from one row of a real
// vocabulary on (38 chunks).
constexpr int64_t kArgmaxChunk = 4096;
constexpr int64_t argmax_chunks(int64_t vocab) { return (vocab + kArgmaxChunk - 1) / kArgmaxChunk; }

// partial: scratch, rows * argmax_chunks(V) integers. V < 2^32: an index takes half of a 64-bit key.
cudaError_t argmax_rows_cuda(const ArgmaxRowsParams& p, uint64_t* partial, cudaStream_t stream);

}  // namespace sparrow
