// The rate of mma.sync.m16n8k16 (bf16, fp32 accumulation) with operands in registers: what a kernel built on it can
// reach at most on this GPU, in TFLOP/s. bench/gpu_check.py builds and runs it; by hand:
//   nvcc -std=c++17 -O3 --expt-relaxed-constexpr -arch=native -Icsrc bench/mma_ceiling.cu -o /tmp/mma && /tmp/mma
// Operands are random numbers of magnitude 0.5 to 2, not zeros: clocks fall under a real load.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/ptx.cuh"

namespace {

constexpr int kThreads = 256, kTiles = 8, kRounds = 2048, kRuns = 15;  // kTiles independent accumulators per warp
constexpr double kFlops = 2. * 16 * 8 * 16;                            // of one instruction

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "mma_ceiling: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Two bf16 numbers: sign, mantissa and the exponent's lowest bit are random.
__device__ uint32_t operand(uint32_t seed) {
  const uint32_t bits = (seed + 1) * 2654435761u;
  return (bits & 0x807f807fu) | 0x3f003f00u | (bits >> 9 & 0x00800080u);
}

// `never` is false; the compiler does not know, so it keeps the sums.
__global__ void __launch_bounds__(kThreads) mma_rate_kernel(int rounds, bool never, float* out) {
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  uint32_t a[4], b[2 * kTiles];
  float d[kTiles][4] = {};
  for (int i = 0; i < 4; ++i) a[i] = operand(thread * 32 + i);
  for (int i = 0; i < 2 * kTiles; ++i) b[i] = operand(thread * 32 + 4 + i);
  for (int r = 0; r < rounds; ++r) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) ptx::mma_m16n8k16<__nv_bfloat16>(d[t], a, b[2 * t], b[2 * t + 1]);
  }
  if (!never) return;
  float sum = 0.f;
  for (int t = 0; t < kTiles; ++t) sum += d[t][0] + d[t][1] + d[t][2] + d[t][3];
  out[thread] = sum;
}

float milliseconds(int blocks, cudaEvent_t begin, cudaEvent_t end) {
  float ms = 0;
  check(cudaEventRecord(begin), "record");
  mma_rate_kernel<<<blocks, kThreads>>>(kRounds, false, nullptr);
  check(cudaGetLastError(), "launch");
  check(cudaEventRecord(end), "record");
  check(cudaEventSynchronize(end), "run");
  check(cudaEventElapsedTime(&ms, begin, end), "time");
  return ms;
}

}  // namespace

int main() {
  int device = 0, sms = 0, per_sm = 0;
  check(cudaGetDevice(&device), "no usable GPU");
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "attribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, mma_rate_kernel, kThreads, 0), "occupancy");
  const int blocks = sms * per_sm * 4;  // four waves: the tail of the last one is small
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event"), check(cudaEventCreate(&end), "event");
  for (int i = 0; i < 3; ++i) milliseconds(blocks, begin, end);
  std::vector<float> times(kRuns);
  for (float& t : times) t = milliseconds(blocks, begin, end);
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  const double flops = kFlops * kTiles * kRounds * (kThreads / 32) * blocks;
  std::printf("%.2f\n", flops / times[kRuns / 2] / 1e9);
}
