// tree_attention: the split kernel on matrix units (attention_mma.cuh), or by multiply-adds where shapes or alignment
// do not allow them, then the combination of the splits (attention.cu).
#include "kernels/launchers.cuh"

#include "kernels/attention_mma.cuh"

namespace sparrow {

cudaError_t attention_mma_tree(const DraftAttentionParams& p, int64_t shared_limit, cudaStream_t stream) {
  return launch_mma_type<false>(p, shared_limit, stream);
}

cudaError_t tree_attention_cuda(const TreeAttentionParams& p, int64_t shared_limit, cudaStream_t stream) {
  if (p.batch * p.nodes * p.heads == 0) return cudaSuccess;
  DraftAttentionParams all{};
  all.attention = p;
  const bool mma = attention_mma_takes(all, false);
  const cudaError_t e = mma ? attention_mma_tree(all, shared_limit, stream) : attention_plain(p, stream);
  if (e != cudaSuccess || (mma && p.splits == 1)) return e;
  return attention_combine(p, stream);
}

}  // namespace sparrow
