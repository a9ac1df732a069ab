// tree_mask: ancestor words and depths, one warp per tree (ancestors.cuh).
#include "kernels/launchers.cuh"

#include "kernels/ancestors.cuh"
#include "kernels/error_word.cuh"

namespace sparrow {
namespace {

__global__ void tree_mask_kernel(TreeMaskParams p) {
  await_previous_kernel();
  SMEM_ARRAY(Ancestors, state, 1);
  const int n = static_cast<int>(p.nodes), words = words_for(n), lane = threadIdx.x;
  const int64_t tree = blockIdx.x;
  warp_ancestors(state[0], n, lane, [&](int i) {
    const int up = p.parent[tree * n + i];
    report_if(up < -1 || up >= i, p.error, kBadParent);
    return up;
  });
  uint64_t* out = reinterpret_cast<uint64_t*>(p.anc) + tree * n * words;
  for (int i = lane; i < n; i += 32) {
    for (int w = 0; w < words; ++w) out[i * words + w] = state[0].words[i * kMaxWords + w];
    p.depth[tree * n + i] = state[0].depth[i];
  }
}

}  // namespace

cudaError_t tree_mask_cuda(const TreeMaskParams& p, cudaStream_t stream) {
  if (p.batch == 0 || p.nodes == 0) return cudaSuccess;
  return SPARROW_LAUNCH(tree_mask_kernel, dim3(static_cast<unsigned>(p.batch)), dim3(32), 0, stream, p);
}

}  // namespace sparrow
