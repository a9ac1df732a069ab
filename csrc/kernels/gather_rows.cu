// gather_rows: copies indexed rows behind each other.
//   Grid: x = one entry of index, y = stretches of a row; a thread copies units of up to 16 bytes, neighbours beside
//   each other. Blocks of entries beyond the count return at once, so the grid is fixed by the shapes.
#include "kernels/launchers.cuh"

#include "kernels/copy_rows.cuh"
#include "kernels/error_word.cuh"

namespace sparrow {
namespace {

template <class U>
__global__ void gather_rows_kernel(GatherRowsParams p) {
  await_previous_kernel();
  const int64_t b = blockIdx.x / p.max_count, i = blockIdx.x % p.max_count;
  const bool first = threadIdx.x == 0 && blockIdx.y == 0;  // of the threads of this entry
  report_if(first && i == 0 && (p.count[b] < 0 || p.count[b] > p.max_count), p.error, kBadCount);
  if (i >= p.count[b]) return;
  const int64_t from = p.index[blockIdx.x], to = p.dst_start[b] + i;
  const bool outside = from < 0 || from >= p.rows || to < 0 || to >= p.capacity;
  report_if(outside && first, p.error, kBadIndex);
  if (outside) return;
  const U* src = reinterpret_cast<const U*>(p.src + b * p.src_batch + from * p.src_row);
  U* dst = reinterpret_cast<U*>(p.dst + b * p.dst_batch + to * p.dst_row);
  const int64_t units = p.row_bytes / static_cast<int64_t>(sizeof(U)),
                step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; at < units; at += step)
    dst[at] = src[at];
}

}  // namespace

cudaError_t gather_rows_cuda(const GatherRowsParams& p, cudaStream_t stream) {
  const int64_t entries = p.batch * p.max_count;
  if (entries == 0 || p.row_bytes == 0 || p.rows == 0 || p.capacity == 0) return cudaSuccess;
  const int unit = copy_unit(address_bits(p.src) | address_bits(p.dst) | p.src_batch | p.src_row | p.dst_batch |
                             p.dst_row | p.row_bytes);
  const int64_t units = p.row_bytes / unit;
  const int threads = copy_threads(units);
  const dim3 grid(static_cast<unsigned>(entries), copy_blocks(units, threads));
  return with_copy_unit(unit, [&](auto u) {
    return SPARROW_LAUNCH((gather_rows_kernel<decltype(u)>), grid, dim3(threads), 0, stream, p);
  });
}

}  // namespace sparrow
