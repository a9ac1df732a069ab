// repetition_penalty: x[v] = x[v] < 0 ? x[v] * p : x[v] / p, once, for every token id v that is in seen[b] or is the
// token of a node that node n sees; every other logit is left untouched.
// Layout: logits float32 [B, N, V], any row strides, last dimension dense, changed in place; the rest contiguous.
// Ancestor bits at or beyond N are ignored. N <= kMaxNodes.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct RepetitionPenaltyParams {
  float* logits;
  const int64_t* tokens;  // [B, N], each in [0, V): the caller checks
  const int64_t* anc;     // [B, N, W], bit j of word w = "sees node 64 w + j"
  const uint8_t* seen;    // [B, V], 0 or 1
  const float* penalty;   // [B]
  int64_t batch, nodes, vocab;
  int64_t stride_b, stride_n;  // of logits, in elements
};

// One item = one row: item i is row (i / nodes, i % nodes).
SPARROW_CPU_KERNEL(repetition_penalty_cpu, RepetitionPenaltyParams)

}  // namespace sparrow
