// Top-k log-probabilities and log-sum-exp of rows of logits x, a bias added first where there is one.
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

// Added to the logits in float32: to row r of a call the V floats at data + (first + r) / inner * stride.
struct LogitBias {
  const float* data;  // null = none
  int64_t inner;      // rows of a sequence
  int64_t stride;     // floats from one sequence's to the next
  int64_t first;      // the operator's row that row 0 of the call is
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
  LogitBias bias;
};
// One item = one chunk of one row: row = item / chunks.
constexpr int64_t kTopkChunk = 8192;
constexpr int64_t topk_chunks(int64_t vocab) { return (vocab + kTopkChunk - 1) / kTopkChunk; }
SPARROW_CPU_KERNEL(topk_lse_cpu, TopkLseParams)

// CUDA: a tile is 128 threads x 32 elements held in registers. A block's stretch of a row is whole tiles: one for
// vocabularies up to 262144, more beyond, so that a row has at most 64 stretches.
constexpr int64_t kTopkTile = 4096, kTopkCudaLists = 64;
constexpr int64_t topk_cuda_chunk(int64_t vocab) {
  const int64_t tiles = (vocab + kTopkTile - 1) / kTopkTile;
  return (tiles + kTopkCudaLists - 1) / kTopkCudaLists * kTopkTile;
}
constexpr int64_t topk_cuda_lists(int64_t vocab) {
  return (vocab + topk_cuda_chunk(vocab) - 1) / topk_cuda_chunk(vocab);
}

// Bytes of the partial results of [rows, chunks], either backend's layout.
constexpr int64_t topk_partial_bytes(int64_t rows, int64_t chunks, int64_t k) {
  return product(rows, chunks, 2 + 2 * k, 4);
}
// Bytes of scratch for M rows on any backend.
constexpr int64_t topk_lse_workspace_bytes(int64_t rows, int64_t vocab, int64_t k) {
  const int64_t cpu = topk_chunks(vocab), cuda = topk_cuda_lists(vocab);
  return topk_partial_bytes(rows, cpu > cuda ? cpu : cuda, k);
}

}  // namespace sparrow
