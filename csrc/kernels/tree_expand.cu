// tree_expand: one level of the draft tree, one block per sequence.
//   1. All T k candidates are scored and written to the history.
//   2. The `beam` best are selected from there, in candidate order (block.cuh); a block barrier makes the block's own
//      global writes visible to it.
//   3. A selected one's rank is the number of selected ones before it by (score, candidate): at most 128 comparisons.
#include "kernels/launchers.cuh"

#include "kernels/block.cuh"
#include "kernels/error_word.cuh"

namespace sparrow {
namespace {

__device__ void write_history(const TreeExpandParams& p, int64_t b) {
  for (int64_t t = threadIdx.x; t < p.rows; t += blockDim.x) {
    const int32_t up = p.beam_index[b * p.rows + t];
    report_if(up < -1 || up >= p.slot, p.error, kBadParent);
  }
  for (int64_t c = threadIdx.x; c < p.rows * p.k; c += blockDim.x) {
    const int64_t t = c / p.k, j = c % p.k, at = b * p.history + p.slot + c;
    const float up = p.beam_score[b * p.rows + t], sum = up + p.logp[b * p.logp_batch + t * p.logp_row + j];
    p.hist_score[at] = sum != sum ? -INFINITY : sum < up ? sum : up;
    p.hist_id[at] = p.ids[b * p.ids_batch + t * p.ids_row + j];
    p.hist_parent[at] = p.beam_index[b * p.rows + t];
  }
}

// Candidate c becomes row r of the next beam.
__device__ void write_beam(const TreeExpandParams& p, int64_t b, int64_t c, int64_t r) {
  const int64_t t = c / p.k, out = b * p.beam + r, slot = p.slot + c, bit = p.level * p.beam + r;
  p.token_ids[out] = p.hist_id[b * p.history + slot];
  p.row_index[out] = static_cast<int32_t>(b * p.rows + t);
  p.score[out] = p.hist_score[b * p.history + slot];
  p.index[out] = static_cast<int32_t>(slot);
  for (int64_t w = 0; w < p.words; ++w) {
    const uint64_t own = bit / kWordBits == w ? uint64_t{1} << (bit % kWordBits) : 0;
    p.anc[out * p.words + w] =
        static_cast<int64_t>(static_cast<uint64_t>(p.beam_anc[(b * p.rows + t) * p.words + w]) | own);
  }
}

__global__ void __launch_bounds__(1024, 1) tree_expand_kernel(TreeExpandParams p) {
  await_previous_kernel();
  SMEM_ARRAY(int, per_warp, kMaxWarps);
  SMEM_ARRAY(int32_t, selected, kMaxNodes);
  SMEM_ARRAY(int32_t, keys, kMaxNodes);
  const int64_t b = blockIdx.x, candidates = p.rows * p.k;
  const int beam = static_cast<int>(p.beam);
  write_history(p, b);
  __syncthreads();
  const float* score = p.hist_score + b * p.history + p.slot;
  select_block(candidates, p.beam, [&](int64_t c) { return ordered_key(score[c]); }, selected, per_warp);
  for (int i = threadIdx.x; i < beam; i += blockDim.x) keys[i] = ordered_key(score[selected[i]]);
  __syncthreads();
  for (int i = threadIdx.x; i < beam; i += blockDim.x) {
    int rank = 0;
    for (int j = 0; j < beam; ++j) rank += keys[j] > keys[i] || (keys[j] == keys[i] && j < i);
    write_beam(p, b, selected[i], rank);
  }
}

}  // namespace

cudaError_t tree_expand_cuda(const TreeExpandParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(p.batch)), block(block_threads(p.rows * p.k));
  return SPARROW_LAUNCH(tree_expand_kernel, grid, block, 0, stream, p);
}

}  // namespace sparrow
