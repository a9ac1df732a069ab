// hsr_project: gather and concatenation fused into a skinny GEMM (skinny_gemm.cuh), split along the columns.
//   1 parts   (64 outputs, split)   fp32 sums of the split's kSkinnySplit columns, to partial[split, m, o]
//   2 reduce  (outputs, row)        the splits added in index order, the bias, one rounding
// The gather is part of filling shared memory: columns below E come from the row's embedding, the others from its
// hidden state. Splits do not depend on M, so neither do a row's bits.
#include "kernels/launchers.cuh"

#include "kernels/error_word.cuh"
#include "kernels/skinny_gemm.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ int64_t valid_rows(const HsrProjectParams& p) {
  if (p.num_rows == nullptr) return p.rows;
  const int64_t n = *p.num_rows;
  return n < 0 ? 0 : n < p.rows ? n : p.rows;
}
// What the CPU operator would refuse: of the count, of valid row m.
__device__ __forceinline__ void report_count(const HsrProjectParams& p) {
  report_if(p.num_rows != nullptr && (*p.num_rows < 0 || *p.num_rows > p.rows), p.error, kBadCount);
}
__device__ __forceinline__ void report_row(const HsrProjectParams& p, int64_t m) {
  if (p.error == nullptr) return;
  const int64_t id = p.token_ids[m], h = p.row_index[m];
  report_if(id < 0 || id >= p.vocab || h < -1 || h >= p.hidden_rows, p.error, kBadIndex);
}
// Row m's embedding and hidden state; null: zeros.
template <class T>
__device__ __forceinline__ const T* embed_row(const HsrProjectParams& p, int64_t m) {
  const int64_t id = p.token_ids[m];
  return id >= 0 && id < p.vocab ? static_cast<const T*>(p.embed) + id * p.embed_stride : nullptr;
}
template <class T>
__device__ __forceinline__ const T* hidden_row(const HsrProjectParams& p, int64_t m) {
  const int64_t h = p.row_index[m];
  return h >= 0 && h < p.hidden_rows ? static_cast<const T*>(p.hidden) + h * p.hidden_stride : nullptr;
}
// Element k of the concatenation of two rows.
template <class T>
__device__ __forceinline__ T concatenated(const T* left, const T* right, int64_t left_width, int64_t k) {
  const T* p = k < left_width ? left : right;
  return p ? p[k < left_width ? k : k - left_width] : from_float<T>(0.f);
}

template <class T>
struct Gathered {
  const T* const* row;  // [rows, 2] in shared memory: embedding, hidden state
  int64_t embed_width;
  __device__ __forceinline__ const T* at(int m, int64_t k) const {
    const int half = k >= embed_width;
    const T* p = row[2 * m + half];
    return p ? p + (half ? k - embed_width : k) : nullptr;
  }
  __device__ __forceinline__ uint4 gather(int m, int64_t k, int64_t end) const {
    T v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      v[j] = k + j < end ? concatenated(row[2 * m], row[2 * m + 1], embed_width, k + j) : from_float<T>(0.f);
    uint4 r;
    memcpy(&r, v, 16);
    return r;
  }
};

// Four blocks per SM: at most 128 registers. Gathering unaligned weights element by element takes more.
template <class T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kSkinnyThreads, kAligned ? 4 : 2) hsr_parts_kernel(HsrProjectParams p) {
  await_previous_kernel();
  using Gemm = SkinnyGemm<T, kTiles, kAligned>;
  SMEM_ARRAY(uint4, stage, Gemm::kStageElements * sizeof(T) / 16);
  SMEM_ARRAY(const T*, row, 2 * Gemm::kRows);
  const int64_t valid = valid_rows(p);
  if (blockIdx.x == 0 && blockIdx.y == 0) {  // one block looks
    if (threadIdx.x == 0) report_count(p);
    if (threadIdx.x < valid) report_row(p, threadIdx.x);
  }
  if (valid == 0) return;
  if (threadIdx.x < Gemm::kRows) {
    const bool exists = threadIdx.x < valid;
    row[2 * threadIdx.x] = exists ? embed_row<T>(p, threadIdx.x) : nullptr;
    row[2 * threadIdx.x + 1] = exists ? hidden_row<T>(p, threadIdx.x) : nullptr;
  }
  const int64_t o = static_cast<int64_t>(blockIdx.x) * kSkinnyOutputs;
  const BlockRows<T> w{static_cast<const T*>(p.weight) + o * p.weight_stride, p.weight_stride, p.outputs - o};
  split_parts<T, kTiles, kAligned>(Gathered<T>{row, p.embed_width}, w, p.embed_width + p.hidden_width, o, p.outputs,
                                   p.rows, static_cast<int>(valid), reinterpret_cast<T*>(&stage[0]), p.partial);
}

template <class T>
__global__ void __launch_bounds__(kThreads) hsr_reduce_kernel(HsrProjectParams p, int splits) {
  await_previous_kernel();
  const int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, m = blockIdx.y, valid = valid_rows(p);
  if (o >= p.outputs) return;
  const float sum = m < valid ? split_sum(p.partial, splits, p.rows, p.outputs, m, o, bias_of<T>(p.bias, o)) : 0.f;
  static_cast<T*>(p.out)[m * p.out_stride + o] = from_float<T>(sum);
}

struct PlainGathered {
  const HsrProjectParams& p;
  __device__ __forceinline__ float at(int64_t m, int64_t k) const {
    return concatenated(embed_row<float>(p, m), hidden_row<float>(p, m), p.embed_width, k);
  }
};

// float32: block (4 outputs, 8 rows).
__global__ void __launch_bounds__(kThreads) hsr_plain_kernel(HsrProjectParams p) {
  await_previous_kernel();
  const int64_t o = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kPlainRows, valid = valid_rows(p);
  if (o >= p.outputs) return;
  if (o == 0) {  // one warp of each group of rows looks
    if (first == 0 && threadIdx.x == 0) report_count(p);
    if (threadIdx.x < kPlainRows && first + threadIdx.x < valid) report_row(p, first + threadIdx.x);
  }
  float* out = static_cast<float*>(p.out);
  const float* bias = static_cast<const float*>(p.bias);
  const auto store = [&](int64_t m, int64_t at, float sum) {
    out[m * p.out_stride + at] = bias ? sum + bias[at] : sum;
  };
  if (first < valid)
    plain_gemm(static_cast<const float*>(p.weight) + o * p.weight_stride, o, p.embed_width + p.hidden_width,
               PlainGathered{p}, first, valid, store);
  if (threadIdx.x % 32 != 0) return;
  for (int64_t m = first > valid ? first : valid; m < p.rows && m < first + kPlainRows; ++m)
    out[m * p.out_stride + o] = 0.f;
}

template <class T>
__global__ void __launch_bounds__(kThreads) hsr_gather_kernel(HsrProjectParams p, int64_t begin, T* x) {
  await_previous_kernel();
  const int64_t width = p.embed_width + p.hidden_width, m = begin + blockIdx.x;
  const bool exists = m < valid_rows(p);
  if (threadIdx.x == 0) {
    if (m == 0) report_count(p);
    if (exists) report_row(p, m);
  }
  const T *left = exists ? embed_row<T>(p, m) : nullptr, *right = exists ? hidden_row<T>(p, m) : nullptr;
  for (int64_t k = threadIdx.x; k < width; k += kThreads)
    x[blockIdx.x * width + k] = concatenated(left, right, p.embed_width, k);
}

template <class T>
__global__ void __launch_bounds__(kThreads) hsr_scatter_kernel(HsrProjectParams p, int64_t begin, const T* y) {
  await_previous_kernel();
  const int64_t m = begin + blockIdx.x;
  const bool exists = m < valid_rows(p);
  T* out = static_cast<T*>(p.out) + m * p.out_stride;
  for (int64_t o = threadIdx.x; o < p.outputs; o += kThreads)
    out[o] = exists ? y[blockIdx.x * p.outputs + o] : from_float<T>(0.f);
}

bool aligned(const HsrProjectParams& p) {
  return skinny_aligned({p.embed_width, p.hidden_width, p.embed_stride, p.hidden_stride, p.weight_stride},
                        {p.embed, p.hidden, p.weight});
}

template <class T>
cudaError_t launch(const HsrProjectParams& p, cudaStream_t stream) {
  const int64_t splits = skinny_splits(p.embed_width + p.hidden_width);
  const dim3 grid(static_cast<unsigned>((p.outputs + kSkinnyOutputs - 1) / kSkinnyOutputs),
                  static_cast<unsigned>(splits));
  if (splits > 0) {
    const cudaError_t error = with_tiles(p.rows, [&](auto tiles) {
      constexpr int kTiles = decltype(tiles)::value;
      if (aligned(p)) return SPARROW_LAUNCH((hsr_parts_kernel<T, kTiles, true>), grid, dim3(kThreads), 0, stream, p);
      return SPARROW_LAUNCH((hsr_parts_kernel<T, kTiles, false>), grid, dim3(kThreads), 0, stream, p);
    });
    if (error != cudaSuccess) return error;
  }
  const dim3 blocks(static_cast<unsigned>((p.outputs + kThreads - 1) / kThreads), static_cast<unsigned>(p.rows));
  return SPARROW_LAUNCH((hsr_reduce_kernel<T>), blocks, dim3(kThreads), 0, stream, p, static_cast<int>(splits));
}

}  // namespace

cudaError_t hsr_project_cuda(const HsrProjectParams& p, cudaStream_t stream) {
  if (p.rows == 0 || p.outputs == 0) return cudaSuccess;
  if (p.dtype == DType::f32) {
    const int64_t groups = (p.rows + kPlainRows - 1) / kPlainRows;
    const dim3 grid(static_cast<unsigned>((p.outputs + kThreads / 32 - 1) / (kThreads / 32)),
                    static_cast<unsigned>(groups));
    return SPARROW_LAUNCH(hsr_plain_kernel, grid, dim3(kThreads), 0, stream, p);
  }
  if (p.rows > kSkinnyRows) return cudaErrorInvalidValue;
  return p.dtype == DType::bf16 ? launch<__nv_bfloat16>(p, stream) : launch<__half>(p, stream);
}

// Both 16-bit types are moved as they are.
cudaError_t hsr_gather_cuda(const HsrProjectParams& p, int64_t begin, int64_t count, void* x, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return SPARROW_LAUNCH((hsr_gather_kernel<__half>), dim3(static_cast<unsigned>(count)), dim3(kThreads), 0, stream, p,
                        begin, static_cast<__half*>(x));
}

cudaError_t hsr_scatter_cuda(const HsrProjectParams& p, int64_t begin, int64_t count, const void* y,
                             cudaStream_t stream) {
  if (count == 0 || p.outputs == 0) return cudaSuccess;
  return SPARROW_LAUNCH((hsr_scatter_kernel<__half>), dim3(static_cast<unsigned>(count)), dim3(kThreads), 0, stream, p,
                        begin, static_cast<const __half*>(y));
}

}  // namespace sparrow
