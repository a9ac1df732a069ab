// argmax_rows: one block per chunk of a row, then one warp per row.
//   A (value, index) pair is one 64-bit key, ordered by value, then by lower index; NaN is above every number, so the
//   largest key is torch.argmax's answer. Maxima of integers: the result does not depend on any order.
#include "kernels/launchers.cuh"

#include "kernels/logits.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

template <class T>
__global__ void __launch_bounds__(kThreads) argmax_chunks_kernel(ArgmaxRowsParams p, uint64_t* partial, int chunks) {
  await_previous_kernel();
  SMEM_ARRAY(uint64_t, warp_best, kWarps);
  const int64_t row = blockIdx.x / chunks, begin = blockIdx.x % chunks * kArgmaxChunk;
  const int64_t left = p.vocab - begin < kArgmaxChunk ? p.vocab - begin : kArgmaxChunk;
  const T* x = static_cast<const T*>(p.logits) + Rows{p.rows1, p.stride0, p.stride1}.at(row) + begin;
  const bool aligned = is_aligned(x);
  uint64_t best = 0;
#pragma unroll 4
  for (int i = threadIdx.x * kVec<T>; i < left; i += kThreads * kVec<T>) {
    float v[kVec<T>];
    load_vec(v, x + i, left - i, aligned);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) {  // beyond the end: -inf, at a higher index than the row's own
      const uint64_t key = pair_key(ordered(v[j], ~0u), static_cast<uint32_t>(begin + i + j));
      best = key > best ? key : best;
    }
  }
  best = warp_max(best);
  if (threadIdx.x % 32 == 0) warp_best[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) best = warp_best[w] > best ? warp_best[w] : best;
  partial[blockIdx.x] = best;
}

__global__ void __launch_bounds__(kThreads)
    argmax_merge_kernel(const uint64_t* partial, int chunks, int64_t rows, int64_t* out) {
  await_previous_kernel();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  uint64_t best = 0;
  for (int c = threadIdx.x % 32; c < chunks; c += 32) {
    const uint64_t key = partial[row * chunks + c];
    best = key > best ? key : best;
  }
  best = warp_max(best);
  if (threadIdx.x % 32 == 0) out[row] = key_index(best);
}

}  // namespace

cudaError_t argmax_rows_cuda(const ArgmaxRowsParams& p, uint64_t* partial, cudaStream_t stream) {
  const int64_t rows = p.rows0 * p.rows1, chunks = argmax_chunks(p.vocab);
  if (rows == 0) return cudaSuccess;
  if (rows * chunks > INT32_MAX) return cudaErrorInvalidConfiguration;  // the grid
  const cudaError_t error = with_dtype(p.dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return SPARROW_LAUNCH((argmax_chunks_kernel<T>), dim3(static_cast<unsigned>(rows * chunks)), dim3(kThreads), 0,
                          stream, p, partial, static_cast<int>(chunks));
  });
  if (error != cudaSuccess) return error;
  return SPARROW_LAUNCH(argmax_merge_kernel, dim3(static_cast<unsigned>((rows + kWarps - 1) / kWarps)), dim3(kThreads),
                        0, stream, partial, static_cast<int>(chunks), rows, p.out);
}

}  // namespace sparrow
