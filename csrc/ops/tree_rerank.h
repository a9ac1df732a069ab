// tree_rerank: the draft tree to verify, from the history of all levels (tree_expand).
//   e[i] = min(score[i], e[parent[i]]) (NaN = -inf; -1 = the root, which bounds nothing)
//   Kept: the N-1 best entries by (e descending, i ascending); -inf is never kept. In history order they become nodes
//   1, 2, ... behind the root, node 0; parent[node] is the number of its history parent's node.
// An entry's parent has at least its e and a lower index, so it ranks before it: the kept set is closed under parents,
// and parents precede children. Nodes beyond num_nodes are padding: token 0, parent -1, own bit only, depth 0.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct TreeRerankParams {
  const int64_t* root_token;      // [B]
  const float* hist_score;        // [B, C], contiguous
  const int64_t* hist_id;         // [B, C]
  const int32_t* hist_parent;     // [B, C], [-1, i)
  int32_t* scratch;               // [B, C]: e as ordered integers, then node numbers
  int64_t* tokens;                // [B, N]
  int32_t* parent;                // [B, N]
  int64_t* anc;                   // [B, N, W]
  int32_t* depth;                 // [B, N]
  int32_t* num_nodes;             // [B]
  int64_t batch, history, nodes;  // C, 1 <= N <= kMaxNodes
  int32_t* error;                 // CUDA: the error word or null
};

// One item = one tree. The parents must have been checked.
SPARROW_CPU_KERNEL(tree_rerank_cpu, TreeRerankParams)

}  // namespace sparrow
