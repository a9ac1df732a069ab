// skinny_linear: skinny_gemm.cuh over the rows of x as they lie in memory, split along the columns.
//   1 parts   (64 outputs, split)   fp32 sums of the split's kSkinnySplit columns, to partial[split, m, o]
//   2 reduce  (outputs, row)        the splits added in index order, the bias, one rounding
#include "kernels/launchers.cuh"

#include "kernels/skinny_gemm.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128;

template <class T>
struct Rows {
  const T* x;
  int64_t stride, rows;
  template <bool kAligned>
  __device__ __forceinline__ uint4 load8(int m, int64_t k, int64_t end) const {
    if (m >= rows || k >= end) return make_uint4(0, 0, 0, 0);
    const T* p = x + m * stride + k;
    if constexpr (kAligned)
      return *reinterpret_cast<const uint4*>(p);
    else
      return gather8(p, end - k);
  }
};

// Four blocks per SM: at most 128 registers. Gathering unaligned weights element by element takes more.
template <class T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kSkinnyThreads, kAligned ? 4 : 2) skinny_parts_kernel(SkinnyLinearParams p) {
  SMEM_ARRAY(uint4, stage, (SkinnyGemm<T, kTiles, kAligned>::kStageElements * sizeof(T) / 16));
  split_parts<T, kTiles, kAligned>(Rows<T>{static_cast<const T*>(p.x), p.x_stride, p.rows},
                                   static_cast<const T*>(p.weight), p.weight_stride, p.width, p.outputs, p.rows, p.rows,
                                   reinterpret_cast<T*>(&stage[0]), p.partial);
}

template <class T>
__global__ void __launch_bounds__(kThreads) skinny_reduce_kernel(SkinnyLinearParams p, int splits) {
  const int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, m = blockIdx.y;
  if (o >= p.outputs) return;
  const float sum = split_sum<T>(p.partial, splits, p.rows, p.outputs, m, o, p.bias);
  static_cast<T*>(p.out)[m * p.out_stride + o] = from_float<T>(sum);
}

struct PlainRows {
  const float* x;
  int64_t stride;
  __device__ __forceinline__ float at(int64_t m, int64_t k) const { return x[m * stride + k]; }
};

// float32: block (4 outputs, 8 rows).
__global__ void __launch_bounds__(kThreads) skinny_plain_kernel(SkinnyLinearParams p) {
  const int64_t o = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (o >= p.outputs) return;
  float* out = static_cast<float*>(p.out);
  const float* bias = static_cast<const float*>(p.bias);
  plain_gemm(static_cast<const float*>(p.weight) + o * p.weight_stride, o, p.width,
             PlainRows{static_cast<const float*>(p.x), p.x_stride}, static_cast<int64_t>(blockIdx.y) * kPlainRows,
             p.rows,
             [&](int64_t m, int64_t at, float sum) { out[m * p.out_stride + at] = bias ? sum + bias[at] : sum; });
}

// 16-bit elements, up to kSkinnyRows rows.
template <class T>
cudaError_t launch(const SkinnyLinearParams& p, cudaStream_t stream) {
  const int64_t splits = skinny_splits(p.width);
  if (splits > 65535) return cudaErrorInvalidConfiguration;
  if (splits > 0) {
    const dim3 grid(static_cast<unsigned>((p.outputs + kSkinnyOutputs - 1) / kSkinnyOutputs),
                    static_cast<unsigned>(splits));
    const bool aligned = skinny_aligned({p.width, p.x_stride, p.weight_stride}, {p.x, p.weight});
    const cudaError_t error = with_tiles(p.rows, [&](auto tiles) {
      constexpr int kTiles = decltype(tiles)::value;
      if (aligned) return SPARROW_LAUNCH((skinny_parts_kernel<T, kTiles, true>), grid, dim3(kThreads), 0, stream, p);
      return SPARROW_LAUNCH((skinny_parts_kernel<T, kTiles, false>), grid, dim3(kThreads), 0, stream, p);
    });
    if (error != cudaSuccess) return error;
  }
  const dim3 blocks(static_cast<unsigned>((p.outputs + kThreads - 1) / kThreads), static_cast<unsigned>(p.rows));
  return SPARROW_LAUNCH((skinny_reduce_kernel<T>), blocks, dim3(kThreads), 0, stream, p, static_cast<int>(splits));
}

}  // namespace

cudaError_t skinny_linear_cuda(const SkinnyLinearParams& all, cudaStream_t stream) {
  if (all.rows == 0 || all.outputs == 0) return cudaSuccess;
  if (all.dtype == DType::f32) {
    const int64_t groups = (all.rows + kPlainRows - 1) / kPlainRows;
    if (groups > 65535) return cudaErrorInvalidConfiguration;
    const dim3 grid(static_cast<unsigned>((all.outputs + kThreads / 32 - 1) / (kThreads / 32)),
                    static_cast<unsigned>(groups));
    return SPARROW_LAUNCH(skinny_plain_kernel, grid, dim3(kThreads), 0, stream, all);
  }
  SkinnyLinearParams p = all;
  for (int64_t begin = 0; begin < all.rows; begin += kSkinnyRows) {
    p.rows = all.rows - begin < kSkinnyRows ? all.rows - begin : kSkinnyRows;
    p.x = static_cast<const char*>(all.x) + begin * all.x_stride * 2;
    p.out = static_cast<char*>(all.out) + begin * all.out_stride * 2;
    const cudaError_t error = p.dtype == DType::bf16 ? launch<__nv_bfloat16>(p, stream) : launch<__half>(p, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace sparrow
