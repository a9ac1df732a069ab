// gather_rows: copies indexed rows behind each other.
//   dst[b, dst_start[b]+i] = src[b, index[b,i]]   for i < count[b]
// A row is everything behind the first two dimensions, dense; batch and row strides are free. No other row is written.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct GatherRowsParams {
  const char* src;                                            // [B, S, row]
  const int32_t* index;                                       // [B, I], contiguous; entries below count lie in [0, S)
  const int32_t* count;                                       // [B] in [0, I]
  char* dst;                                                  // [B, cap, row], not overlapping src
  const int32_t* dst_start;                                   // [B], dst_start + count <= cap
  int64_t src_batch, src_row, dst_batch, dst_row, row_bytes;  // strides in bytes, and the bytes of one row
  int64_t batch, max_count, rows, capacity;                   // B, I, S, cap
  int32_t* error;                                             // CUDA: the error word or null
};

// One item = one entry of index, B * I in all.
SPARROW_CPU_KERNEL(gather_rows_cpu, GatherRowsParams)

}  // namespace sparrow
