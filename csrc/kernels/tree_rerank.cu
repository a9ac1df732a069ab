// tree_rerank: the tree to verify out of the history, one block per tree.
//   1. Effective scores e[i] = min(score[i], e[parent[i]]) as ordered integers, to scratch. Entries go through in
//      chunks of one per thread; a parent in an earlier chunk is final, inside the chunk pointer jumping in shared
//      memory folds the path up, doubling it each round (a round's reads and writes are apart by barriers).
//   2. The N-1 best above -inf are selected in history order (block.cuh). A parent has at least its child's e and a
//      lower index, so it is selected, too.
//   3. Node numbers are places in that list: a parent's is found by bisection. Ancestor words as in tree_mask.
#include "kernels/launchers.cuh"

#include "kernels/ancestors.cuh"
#include "kernels/block.cuh"
#include "kernels/error_word.cuh"

namespace sparrow {
namespace {

constexpr int kMaxThreads = 1024;  // block_threads() gives no more

// key and up are shared, one entry per thread; up = the thread whose entry is the next ancestor, or -1.
__device__ void effective_keys(const TreeRerankParams& p, int64_t b, int32_t* key, int* up) {
  const float* score = p.hist_score + b * p.history;
  const int32_t* parent = p.hist_parent + b * p.history;
  int32_t* final_key = p.scratch + b * p.history;
  const int t = threadIdx.x;
  for (int64_t first = 0; first < p.history; first += blockDim.x) {
    const int64_t i = first + t;
    int32_t own = kNever;
    int next = -1;
    if (i < p.history) {
      const int64_t above = parent[i];
      report_if(above < -1 || above >= i, p.error, kBadParent);
      if (above >= -1 && above < i) own = ordered_key(score[i]);
      if (above >= 0 && above < first) own = min(own, final_key[above]);
      if (above >= first && above < i) next = static_cast<int>(above - first);
    }
    key[t] = own;
    up[t] = next;
    while (__syncthreads_or(next >= 0)) {
      const int32_t bound = next >= 0 ? key[next] : own;
      const int further = next >= 0 ? up[next] : -1;
      __syncthreads();
      own = min(own, bound);
      next = further;
      key[t] = own;
      up[t] = next;
    }
    if (i < p.history) final_key[i] = own;
    __syncthreads();
  }
}

// The place of `value` in an ascending list that holds it.
__device__ int place_of(int32_t value, const int32_t* list, int n) {
  int low = 0;
  for (int high = n - 1; low < high;) {
    const int middle = (low + high) / 2;
    if (list[middle] < value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__global__ void __launch_bounds__(1024, 1) tree_rerank_kernel(TreeRerankParams p) {
  await_previous_kernel();
  SMEM_ARRAY(int32_t, key, kMaxThreads);
  SMEM_ARRAY(int, up, kMaxThreads);
  SMEM_ARRAY(int, per_warp, kMaxWarps);
  SMEM_ARRAY(int32_t, selected, kMaxNodes);
  SMEM_ARRAY(int, parent, kMaxNodes);
  SMEM_ARRAY(Ancestors, state, 1);
  const int64_t b = blockIdx.x, from = b * p.history, out = b * p.nodes;
  const int nodes = static_cast<int>(p.nodes), words = words_for(nodes);
  effective_keys(p, b, key, up);
  const int32_t* keys = p.scratch + from;
  const int64_t possible = count_block(p.history, [&](int64_t i) { return keys[i] > kNever; });
  const int kept = static_cast<int>(min(possible, p.nodes - 1));
  select_block(p.history, kept, [&](int64_t i) { return keys[i]; }, selected, per_warp);
  for (int node = threadIdx.x; node < nodes; node += blockDim.x) {
    const int32_t entry = node >= 1 && node <= kept ? selected[node - 1] : -1;
    const int32_t above = entry >= 0 ? p.hist_parent[from + entry] : -1;
    parent[node] = entry < 0 ? -1 : above < 0 ? 0 : 1 + place_of(above, selected, kept);
    p.tokens[out + node] = node == 0 ? p.root_token[b] : entry >= 0 ? p.hist_id[from + entry] : 0;
    p.parent[out + node] = parent[node];
  }
  if (threadIdx.x == 0) p.num_nodes[b] = kept + 1;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  warp_ancestors(state[0], nodes, threadIdx.x, [&](int i) { return parent[i]; });
  for (int i = threadIdx.x; i < nodes; i += 32) {
    for (int w = 0; w < words; ++w)
      p.anc[(out + i) * words + w] = static_cast<int64_t>(state[0].words[i * kMaxWords + w]);
    p.depth[out + i] = state[0].depth[i];
  }
}

}  // namespace

cudaError_t tree_rerank_cuda(const TreeRerankParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(p.batch)), block(block_threads(p.history));
  return SPARROW_LAUNCH(tree_rerank_kernel, grid, block, 0, stream, p);
}

}  // namespace sparrow
