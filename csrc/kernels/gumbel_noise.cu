// gumbel_noise: a thread per four columns of a row. Without an id_map they are one Philox counter's.
#include "kernels/launchers.cuh"

#include "kernels/noise.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = 128, kColumns = 4 * kThreads;

// -log(-log u), u = (word + 1/2) 2^-32; above one half from 1 - u = (~word + 1/2) 2^-32.
__device__ __forceinline__ float gumbel(uint32_t word) {
  const bool upper = word >> 31;
  const float part = (static_cast<float>(upper ? ~word : word) + .5f) * 0x1p-32f;
  return -logf(upper ? -log1pf(-part) : -logf(part));
}

__global__ void __launch_bounds__(kThreads) gumbel_noise_kernel(GumbelNoiseParams p) {
  await_previous_kernel();
  const int64_t row = blockIdx.x, i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * 4;
  if (i >= p.vocab) return;
  const Noise noise{static_cast<uint64_t>(p.seed[row / p.positions]), static_cast<uint64_t>(p.position[row])};
  float* out = p.out + row * p.vocab + i;
  uint32_t words[4];
  if (p.id_map == nullptr) noise.words(words, static_cast<uint32_t>(i / 4));
  for (int j = 0; j < 4 && i + j < p.vocab; ++j) {
    if (p.id_map != nullptr) {
      const uint64_t id = static_cast<uint64_t>(p.id_map[i + j]);
      noise.words(words, static_cast<uint32_t>(id >> 2));
      const uint32_t low = id & 1 ? words[1] : words[0], high = id & 1 ? words[3] : words[2];
      out[j] = gumbel(id & 2 ? high : low);
    } else {
      out[j] = gumbel(j == 0 ? words[0] : j == 1 ? words[1] : j == 2 ? words[2] : words[3]);
    }
  }
}

}  // namespace

cudaError_t gumbel_noise_cuda(const GumbelNoiseParams& p, cudaStream_t stream) {
  const int64_t rows = p.batch * p.positions;
  if (rows == 0) return cudaSuccess;
  const int64_t blocks = (p.vocab + kColumns - 1) / kColumns;
  if (rows > INT32_MAX || blocks > 65535) return cudaErrorInvalidConfiguration;  // the grid
  return SPARROW_LAUNCH(gumbel_noise_kernel, dim3(static_cast<unsigned>(rows), static_cast<unsigned>(blocks)),
                        dim3(kThreads), 0, stream, p);
}

}  // namespace sparrow
