// silu_mul: a block per piece of a row, a thread per 16 bytes.
#include "kernels/launchers.cuh"

#include "kernels/vectors.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) silu_mul_kernel(SiluMulParams p) {
  await_previous_kernel();
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kVec<T>, m = blockIdx.x;
  if (i >= p.width) return;
  const T* gate = static_cast<const T*>(p.gate) + m * p.gate_stride + i;
  const T* up = static_cast<const T*>(p.up) + m * p.up_stride + i;
  T* out = static_cast<T*>(p.out) + m * p.width + i;
  const bool aligned = is_aligned(gate) && is_aligned(up) && is_aligned(out);
  float g[kVec<T>], u[kVec<T>];
  load_zeros(g, gate, p.width - i, aligned);
  load_zeros(u, up, p.width - i, aligned);
#pragma unroll
  for (int j = 0; j < kVec<T>; ++j) g[j] = to_float(from_float<T>(g[j] / (1.f + expf(-g[j])))) * u[j];
  store_vec(out, g, p.width - i, aligned);
}

}  // namespace

cudaError_t silu_mul_cuda(const SiluMulParams& p, cudaStream_t stream) {
  if (p.rows * p.width == 0) return cudaSuccess;
  if (p.rows > INT32_MAX) return cudaErrorInvalidConfiguration;  // the grid
  return with_dtype(p.dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const int64_t blocks = (p.width + kThreads * kVec<T> - 1) / (kThreads * kVec<T>);
    return SPARROW_LAUNCH((silu_mul_kernel<T>), dim3(static_cast<unsigned>(p.rows), static_cast<unsigned>(blocks)),
                          dim3(kThreads), 0, stream, p);
  });
}

}  // namespace sparrow
