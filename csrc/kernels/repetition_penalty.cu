// repetition_penalty: one block per (row, stretch of the vocabulary).
//   The bitmap is read 16 flags at a time; logits only where a flag is set. Thread j then looks after node j: its token
//   is penalised here where it lies in this block's stretch, is visible, not in the bitmap and not the token of a lower
//   visible node. So every logit is changed by one thread, once.
#include "kernels/launchers.cuh"

#include "kernels/logits.cuh"

namespace sparrow {
namespace {

constexpr int kThreads = kMaxNodes, kFlags = 16;
// 128 threads x 16 flags x 4: a chat has seen few tokens, so a block is little else than reading its flags.
constexpr int64_t kPenaltyChunk = 8192;

__device__ __forceinline__ float penalised(float x, float p) { return x < 0.f ? x * p : x / p; }

__device__ __forceinline__ void penalise_seen(float* x, const uint8_t* seen, int64_t begin, int64_t end, float p) {
  const bool aligned = is_aligned(seen + begin);
  for (int64_t v = begin + threadIdx.x * kFlags; v < end; v += kThreads * kFlags) {
    uint8_t flags[kFlags];
    if (aligned && v + kFlags <= end) {
      const uint4 word = *reinterpret_cast<const uint4*>(seen + v);
      if ((word.x | word.y | word.z | word.w) == 0) continue;
      memcpy(flags, &word, kFlags);
    } else {
#pragma unroll
      for (int i = 0; i < kFlags; ++i) flags[i] = v + i < end ? seen[v + i] : 0;
    }
#pragma unroll
    for (int i = 0; i < kFlags; ++i)
      if (flags[i]) x[v + i] = penalised(x[v + i], p);
  }
}

__global__ void __launch_bounds__(kThreads) repetition_penalty_kernel(RepetitionPenaltyParams p, int chunks) {
  await_previous_kernel();
  SMEM_ARRAY(int64_t, path, kMaxNodes);  // the visible nodes' tokens; -1: not visible
  const int64_t row = blockIdx.x / chunks, b = row / p.nodes, n = row % p.nodes;
  const int64_t begin = blockIdx.x % chunks * kPenaltyChunk;
  const int64_t end = begin + kPenaltyChunk < p.vocab ? begin + kPenaltyChunk : p.vocab;
  const int nodes = static_cast<int>(p.nodes), j = threadIdx.x;
  float* x = p.logits + b * p.stride_b + n * p.stride_n;
  const uint8_t* seen = p.seen + b * p.vocab;
  const float penalty = p.penalty[b];
  int64_t token = -1;
  if (j < nodes) {
    const uint64_t word = static_cast<uint64_t>(p.anc[row * words_for(nodes) + j / kWordBits]);
    if ((word >> (j % kWordBits)) & 1) token = p.tokens[b * nodes + j];
  }
  path[j] = token;
  __syncthreads();
  penalise_seen(x, seen, begin, end, penalty);
  if (token < begin || token >= end || seen[token]) return;
  for (int i = 0; i < j; ++i)
    if (path[i] == token) return;
  x[token] = penalised(x[token], penalty);
}

}  // namespace

cudaError_t repetition_penalty_cuda(const RepetitionPenaltyParams& p, cudaStream_t stream) {
  const int64_t rows = p.batch * p.nodes, chunks = (p.vocab + kPenaltyChunk - 1) / kPenaltyChunk;
  if (rows * chunks == 0) return cudaSuccess;
  if (rows * chunks > INT32_MAX) return cudaErrorInvalidConfiguration;  // the grid
  return SPARROW_LAUNCH(repetition_penalty_kernel, dim3(static_cast<unsigned>(rows * chunks)), dim3(kThreads), 0,
                        stream, p, static_cast<int>(chunks));
}

}  // namespace sparrow
