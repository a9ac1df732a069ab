#pragma once
#include <cuda_runtime_api.h>

#include "ops/sample_rows.h"

namespace sparrow {

// 128 threads x 32 elements; 38 blocks a row at a real vocabulary's size.
constexpr int64_t kSampleChunk = 4096;
constexpr int64_t sample_chunks(int64_t vocab) { return (vocab + kSampleChunk - 1) / kSampleChunk; }
// Scratch of one chunk (two pairs of 8 bytes) and of one row.
constexpr int64_t kSampleChunkBytes = 32, kSampleRowBytes = 48;
constexpr int64_t sample_rows_scratch_bytes(int64_t rows, int64_t vocab) {
  return rows * (sample_chunks(vocab) * kSampleChunkBytes + kSampleRowBytes);
}

// scratch: sample_rows_scratch_bytes, 8-byte aligned; p.block_max is not used. A temperature that is neither 0 nor in
// [kMinTemperature, inf] counts as 0, a negative top_k or a top_p that is NaN as off, a negative top_p as 0.
cudaError_t sample_rows_cuda(const SampleRowsParams& p, void* scratch, cudaStream_t stream);

}  // namespace sparrow
