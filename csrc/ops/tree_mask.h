// tree_mask: ancestor words and depths of draft trees.
//   anc[b,i] = (anc[b,parent[i]] if parent[i] >= 0 else 0) | 1 << i;   depth[b,i] = depth[b,parent[i]] + 1, roots 0
// parent[i] lies in [-1, i): nodes come after their parents, so one forward sweep does it.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct TreeMaskParams {
  const int32_t* parent;  // [B, N], contiguous
  int64_t* anc;           // [B, N, W], bit j of word w = "sees node 64 w + j"
  int32_t* depth;         // [B, N]
  int64_t batch, nodes;   // N <= kMaxNodes
  int32_t* error;         // CUDA: the error word or null
};

// One item = one tree. The parents must have been checked (first_bad_parent).
SPARROW_CPU_KERNEL(tree_mask_cpu, TreeMaskParams)

}  // namespace sparrow
