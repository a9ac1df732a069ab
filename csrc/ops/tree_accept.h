// tree_accept: which drafted nodes the target agrees with.
//   Sequential walk: at = 0; follow the LOWEST-index child of `at` whose token equals target[at]; stop where there is
//   none or at max_path nodes. path = the nodes visited (path[0] = 0), out_tokens[j] = target[path[j]], both -1 padded.
// Children come after their parents, so one forward sweep over the nodes is the walk. Only the first matching sibling
// is followed: target[i] is drawn once per node, and choosing among duplicate siblings by what they lead to would bias
// it.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct TreeAcceptParams {
  const int64_t* tokens;     // [B, N], contiguous
  const int32_t* parent;     // [B, N]
  const int64_t* target;     // [B, N], the target's choice after each node
  const int32_t* num_nodes;  // [B] in [0, N], or null: all N
  int32_t* num_path;         // [B], 0 only for an empty tree
  int32_t* path;             // [B, max_path]
  int64_t* out_tokens;       // [B, max_path]
  int64_t batch, nodes, max_path;
  int32_t* error;  // CUDA: the error word or null
};

// One item = one tree. Parents and counts must have been checked.
SPARROW_CPU_KERNEL(tree_accept_cpu, TreeAcceptParams)

}  // namespace sparrow
