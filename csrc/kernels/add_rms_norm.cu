// add_rms_norm: one block per row. A thread reads 16 bytes at a time where the addresses allow; the second time it
// reads what it wrote itself. Order of the squares' sum: a thread's own in order, its warp by halves, warps in order.
#include "kernels/launchers.cuh"

#include "kernels/vectors.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;  // a row of a 7B model: two 16-byte loads a thread

template <class T>
__global__ void __launch_bounds__(kThreads) add_rms_norm_kernel(AddRmsNormParams p) {
  await_previous_kernel();
  SMEM_ARRAY(float, of_warp, kWarps);
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* residual = p.residual ? static_cast<const T*>(p.residual) + row * p.residual_stride : nullptr;
  const T* weight = static_cast<const T*>(p.weight);
  T* sum = p.residual ? static_cast<T*>(p.sum) + row * p.width : nullptr;
  T* out = static_cast<T*>(p.out) + row * p.width;
  const bool aligned = is_aligned(x) && is_aligned(weight) && is_aligned(out) &&
                       (!residual || (is_aligned(residual) && is_aligned(sum)));
  float squares = 0.f;
  for (int64_t i = threadIdx.x * kVec<T>; i < p.width; i += kThreads * kVec<T>) {
    float v[kVec<T>];
    load_zeros(v, x + i, p.width - i, aligned);
    if (residual) {
      float more[kVec<T>];
      load_zeros(more, residual + i, p.width - i, aligned);
#pragma unroll
      for (int j = 0; j < kVec<T>; ++j) v[j] = to_float(from_float<T>(v[j] + more[j]));
      store_vec(sum + i, v, p.width - i, aligned);
    }
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) squares = fmaf(v[j], v[j], squares);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = squares;
  __syncthreads();
  float all = of_warp[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) all += of_warp[w];
  const float scale = 1.f / sqrtf(all / static_cast<float>(p.width) + p.eps);
  const T* summed = residual ? sum : x;
  for (int64_t i = threadIdx.x * kVec<T>; i < p.width; i += kThreads * kVec<T>) {
    float v[kVec<T>], w[kVec<T>];
    load_zeros(v, summed + i, p.width - i, aligned);
    load_zeros(w, weight + i, p.width - i, aligned);
#pragma unroll
    for (int j = 0; j < kVec<T>; ++j) v[j] = to_float(from_float<T>(v[j] * scale)) * w[j];
    store_vec(out + i, v, p.width - i, aligned);
  }
}

}  // namespace

cudaError_t add_rms_norm_cuda(const AddRmsNormParams& p, cudaStream_t stream) {
  if (p.rows * p.width == 0) return cudaSuccess;
  if (p.rows > INT32_MAX) return cudaErrorInvalidConfiguration;  // the grid
  return with_dtype(p.dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return SPARROW_LAUNCH((add_rms_norm_kernel<T>), dim3(static_cast<unsigned>(p.rows)), dim3(kThreads), 0, stream, p);
  });
}

}  // namespace sparrow
