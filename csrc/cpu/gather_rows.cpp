#include "ops/gather_rows.h"

#include <cstring>

namespace sparrow {
namespace SPARROW_ISA {

void gather_rows_cpu(const GatherRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end;) {
    const int64_t b = item / p.max_count, first = b * p.max_count, next = first + p.max_count;
    const int32_t* index = p.index + first;
    const char* src = p.src + b * p.src_batch;
    char* dst = p.dst + b * p.dst_batch + static_cast<int64_t>(p.dst_start[b]) * p.dst_row;
    const int64_t stop = (end < next ? end : next) - first, rows = stop < p.count[b] ? stop : p.count[b];
    for (int64_t i = item - first; i < rows; ++i) {
      std::memcpy(dst + i * p.dst_row, src + index[i] * p.src_row, p.row_bytes);
    }
    item = next;
  }
}

}  // namespace SPARROW_ISA
}  // namespace sparrow
