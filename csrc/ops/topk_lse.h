// Top-k log-probabilities and log-sum-exp of rows of logits.
//   lse = log sum_v exp(x[v]);   logp[j] = x[i_j] - lse, i_0, i_1, ... in the order (x descending, index ascending)
// NaN counts as -inf. A row of -inf: lse = -inf, logp = -inf, the first k indices. A row with +inf: lse = +inf, logp =
// 0 for its +inf entries and -inf for the others. A row is cut into chunks of fixed length; each leaves a partial
// result, and the partials are merged in chunk order: the result does not depend on the number of threads.
#pragma once
#include "ops/common.h"

namespace sparrow {

constexpr int kTopkMax = 32;

// Partial results of [rows, chunks]: entry e = row * chunks + chunk.
struct TopkPartials {
  float* stat;     // [entries, 2]: the maximum, the sum of exp(x - maximum)
  float* value;    // [entries, k], descending; -inf = unused
  int32_t* index;  // [entries, k]
  int64_t chunks;
  int64_t k;
};

struct TopkMergeParams {
  TopkPartials parts;
  const int64_t* id_map;  // [V] or null: ids = id_map[index]
  float* logp;            // [rows, k]
  int64_t* ids;           // [rows, k]
  float* lse;             // [rows]
};
// One item = one row.
SPARROW_CPU_KERNEL(topk_merge_cpu, TopkMergeParams)

struct TopkLseParams {
  const void* logits;                  // row r at (r / inner) * outer_stride + (r % inner) * inner_stride, dense
  int64_t inner;                       // rows of the second-to-last dimension
  int64_t outer_stride, inner_stride;  // elements
  int64_t vocab;                       // V < 2^31
  DType dtype;
  TopkPartials parts;
};
// One item = one chunk of one row: row = item / chunks.
constexpr int64_t kTopkChunk = 8192;
SPARROW_CPU_KERNEL(topk_lse_cpu, TopkLseParams)

}  // namespace sparrow
