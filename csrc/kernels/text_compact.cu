// text_compact: ordered positions of the text rows, one block per sequence.
//   A warp takes kRounds * 32 rows that follow each other, one ballot per 32; a scan over the warps' counts gives each
//   warp its place in the output, ballots below it and lanes below give each row its own. Two block barriers per
//   kRounds * blockDim rows.
#include "kernels/launchers.cuh"

#include "kernels/block.cuh"

namespace sparrow {
namespace {

constexpr int kRounds = 8;  // loads in flight per thread

__global__ void __launch_bounds__(1024, 1) text_compact_kernel(TextCompactParams p) {
  await_previous_kernel();
  SMEM_ARRAY(int, per_warp, kMaxWarps);
  const int64_t b = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t rows = max(int64_t{0}, min(int64_t{p.seq_lens[b]}, p.rows));
  const uint8_t* is_text = p.is_text + b * p.batch_stride;
  int32_t* index = p.index + b * p.max_text;
  int64_t count = 0;
  for (int64_t at = 0; at < rows; at += kRounds * blockDim.x) {
    const int64_t first = at + warp * kRounds * 32 + lane;
    unsigned votes[kRounds];
    int in_warp = 0;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int64_t s = first + r * 32;
      votes[r] = __ballot_sync(~0u, s < rows && is_text[s] != 0);
      in_warp += __popc(votes[r]);
    }
    const Scan scan = scan_warps(in_warp, per_warp);
    int64_t to = count + scan.before;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int64_t own = to + __popc(votes[r] & ((1u << lane) - 1));
      if ((votes[r] >> lane & 1) && own < p.max_text) index[own] = static_cast<int32_t>(first + r * 32);
      to += __popc(votes[r]);
    }
    count += scan.total;
  }
  for (int64_t i = count + threadIdx.x; i < p.max_text; i += blockDim.x) index[i] = -1;
  if (threadIdx.x == 0) p.count[b] = static_cast<int32_t>(count);
}

}  // namespace

cudaError_t text_compact_cuda(const TextCompactParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  const int threads = block_threads((p.rows + kRounds - 1) / kRounds);
  return SPARROW_LAUNCH(text_compact_kernel, dim3(static_cast<unsigned>(p.batch)), dim3(threads), 0, stream, p);
}

}  // namespace sparrow
