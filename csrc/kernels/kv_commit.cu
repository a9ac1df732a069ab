// kv_commit: moves the accepted rows of a verified tree together, in place.
//   Grid: x = one item per (sequence; key or value tensor, head), and in the last launch one more per sequence for
//   its new length; y = stretches of a row. A thread owns a column of one unit (up to 16 bytes) through
//   all rows.
// Why in place is safe, at any path length: rows of different columns never meet, so only a thread's own order counts.
//   It loads a chunk of 16 path entries into registers before it stores one of them. Stores of a chunk that ends before
//   row e touch rows below e only, and later chunks read rows path[j] >= j >= e.
// base_lens is only read and new_lens only written (by the first thread of the sequence's last item), so a replay does
// the same again.
#include "kernels/launchers.cuh"

#include <algorithm>

#include "kernels/copy_rows.cuh"
#include "kernels/error_word.cuh"

namespace sparrow {
namespace {

constexpr int kChunk = 16;  // 16 units of 16 bytes = 64 registers

// Row j becomes row path[j], at one column, for j < path[j] < limit.
template <class U>
__device__ void copy_column(char* column, int64_t step, const int32_t* path, int n, int64_t limit) {
  for (int first = 0; first < n; first += kChunk) {
    U value[kChunk];
    bool valid[kChunk];
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      const int j = first + c;
      const int64_t row = j < n ? path[j] : -1;
      valid[c] = row > j && row < limit;  // an entry equal to its row is there already
      if (valid[c]) value[c] = *reinterpret_cast<const U*>(column + row * step);
    }
#pragma unroll
    for (int c = 0; c < kChunk; ++c)
      if (valid[c]) *reinterpret_cast<U*>(column + (first + c) * step) = value[c];
  }
}

// What the CPU operator would refuse; one block per sequence looks.
__device__ void report_bad_values(const KvCommitParams& p, int64_t b, const int32_t* path, int n) {
  const int64_t base = p.base_lens[b], most = p.rows - base;
  if (threadIdx.x == 0) report_if(n != p.num_path[b] || base < 0 || base + n > p.rows, p.error, kBadCount);
  for (int j = threadIdx.x; j < n; j += blockDim.x)
    report_if(path[j] < (j ? path[j - 1] + int64_t{1} : 0) || path[j] >= most, p.error, kBadIndex);
}

template <class U>
__global__ void __launch_bounds__(256, 1) kv_commit_kernel(KvCommitParams p) {
  await_previous_kernel();
  const int64_t moved = p.tensors * p.heads, per_sequence = moved + p.last;
  const int64_t b = blockIdx.x / per_sequence, item = blockIdx.x % per_sequence;
  const int32_t* path = p.path + b * p.max_path;
  const int n = static_cast<int>(max(int64_t{0}, min(int64_t{p.num_path[b]}, p.max_path)));
  const int64_t base = p.base_lens[b];
  const int64_t unit = sizeof(U), step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (item == moved) {
    if (blockIdx.y == 0) report_bad_values(p, b, path, n);
    if (first == 0) p.new_lens[b] = static_cast<int32_t>(max(int64_t{0}, min(base + n, p.rows)));
    return;
  }
  if (base < 0) return;
  char* rows = p.kv[item / p.heads] + b * p.kv_batch + item % p.heads * p.kv_head + base * p.kv_row;
  for (int64_t at = first * unit; at < p.kv_bytes; at += step * unit)
    copy_column<U>(rows + at, p.kv_row, path, n, p.rows - base);
}

}  // namespace

cudaError_t kv_commit_cuda(const KvCommitParams& p, cudaStream_t stream) {
  if (kv_commit_items(p) == 0) return cudaSuccess;
  uint64_t bits = 0;
  for (int64_t i = 0; i < p.tensors; ++i) bits |= address_bits(p.kv[i]);
  if (p.tensors > 0) bits |= p.kv_batch | p.kv_row | p.kv_head | p.kv_bytes;
  const int unit = copy_unit(bits);
  const int64_t longest = std::max<int64_t>(p.tensors > 0 ? p.kv_bytes : 0, 1);
  const int64_t units = (longest + unit - 1) / unit;
  const int threads = copy_threads(units);
  const dim3 grid(static_cast<unsigned>(kv_commit_items(p)), copy_blocks(units, threads));
  return with_copy_unit(
      unit, [&](auto u) { return SPARROW_LAUNCH((kv_commit_kernel<decltype(u)>), grid, dim3(threads), 0, stream, p); });
}

}  // namespace sparrow
