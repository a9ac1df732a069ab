// argmax_rows: out[r] = the lowest index among the maxima of row r; a row with NaN gives the index of its first NaN
// (as torch.argmax). -0 equals +0.
// Layout: logits [R0, R1, V], any row strides, last dimension dense; out [R0, R1] contiguous. V >= 1.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct ArgmaxRowsParams {
  const void* logits;
  int64_t* out;
  DType dtype;
  int64_t rows0, rows1, vocab;
  int64_t stride0, stride1;  // of logits, in elements
};

// CUDA: 128 threads x 32 elements: enough loads in flight to hide memory, enough blocks to fill a GPU from one row of a
// real vocabulary on (38 chunks).
constexpr int64_t kArgmaxChunk = 4096;
constexpr int64_t argmax_chunks(int64_t vocab) { return (vocab + kArgmaxChunk - 1) / kArgmaxChunk; }

// One item = one row: item i is row (i / rows1, i % rows1).
SPARROW_CPU_KERNEL(argmax_rows_cpu, ArgmaxRowsParams)

}  // namespace sparrow
