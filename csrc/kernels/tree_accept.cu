// tree_accept: the sequential walk, one warp per tree.
//   The tree lies in shared memory. A step asks all nodes behind `at` at once, 32 per ballot, which are children of
//   `at` with the token the target chose there; the first bit is the lowest such node. Children come after their
//   parents, so the nodes up to `at` need not be asked, the walk only ever moves up, and it ends whatever the parents
//   hold.
#include "kernels/launchers.cuh"

#include "kernels/error_word.cuh"

namespace sparrow {
namespace {

// The lowest child of `at` with this token, or -1. The whole warp calls it.
__device__ int matching_child(const int64_t* tokens, const int* parent, int n, int at, int64_t token) {
  for (int first = (at + 1) / 32 * 32; first < n; first += 32) {
    const int i = first + static_cast<int>(threadIdx.x);
    const bool match = i > at && i < n && parent[i] == at && tokens[i] == token;
    if (const unsigned votes = __ballot_sync(~0u, match)) return first + __ffs(static_cast<int>(votes)) - 1;
  }
  return -1;
}

__global__ void tree_accept_kernel(TreeAcceptParams p) {
  await_previous_kernel();
  SMEM_ARRAY(int64_t, tokens, kMaxNodes);
  SMEM_ARRAY(int64_t, target, kMaxNodes);
  SMEM_ARRAY(int, parent, kMaxNodes);
  const int64_t tree = blockIdx.x, from = tree * p.nodes;
  const int lane = threadIdx.x, all = static_cast<int>(p.nodes);
  const int given = p.num_nodes ? p.num_nodes[tree] : all, n = max(0, min(given, all));
  report_if(given != n && lane == 0, p.error, kBadCount);
  for (int i = lane; i < n; i += 32) {
    tokens[i] = p.tokens[from + i];
    target[i] = p.target[from + i];
    parent[i] = p.parent[from + i];
    report_if(parent[i] < -1 || parent[i] >= i, p.error, kBadParent);
  }
  __syncwarp();
  int32_t* path = p.path + tree * p.max_path;
  int64_t* out = p.out_tokens + tree * p.max_path;
  int64_t length = 0;
  for (int at = n > 0 ? 0 : -1; at >= 0;) {
    if (lane == 0) {
      path[length] = at;
      out[length] = target[at];
    }
    ++length;
    at = length < p.max_path ? matching_child(tokens, parent, n, at, target[at]) : -1;
  }
  if (lane == 0) p.num_path[tree] = static_cast<int32_t>(length);
  for (int64_t j = length + lane; j < p.max_path; j += 32) {
    path[j] = -1;
    out[j] = -1;
  }
}

}  // namespace

cudaError_t tree_accept_cuda(const TreeAcceptParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  return SPARROW_LAUNCH(tree_accept_kernel, dim3(static_cast<unsigned>(p.batch)), dim3(32), 0, stream, p);
}

}  // namespace sparrow
