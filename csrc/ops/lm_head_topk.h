// lm_head_topk: topk_lse(h @ weight^T) without the logits in memory: each tile of the vocabulary goes from the skinny
// GEMM's registers through a small buffer into the running (maximum, sum, top-k) of its chunk.
#pragma once
#include "ops/skinny.h"
#include "ops/topk_lse.h"

namespace sparrow {

struct LmHeadTopkParams {
  const void* h;                       // row m at (m / inner) * outer_stride + (m % inner) * inner_stride, dense
  int64_t inner;                       // rows of the second-to-last dimension
  int64_t outer_stride, inner_stride;  // elements
  const void* weight;                  // [V, E], dense rows
  int64_t weight_stride;
  void* packed;          // scratch: packed_bytes(M, E) bytes, 64-byte aligned
  int64_t first, rows;   // the rows of h of this call: [first, first + M), M <= kSkinnyRows
  int64_t width, vocab;  // E, V < 2^31
  DType dtype;
  TopkPartials parts;
  LogitBias bias;
};

// Stage 1, pack_items(M) items: packs h. Stage 2, one item = one chunk of the vocabulary, all rows.
// Both stages must run on the same instruction set. topk_merge_cpu finishes.
constexpr int64_t kLmHeadChunk = 960;
SPARROW_CPU_KERNEL(lm_head_pack_cpu, LmHeadTopkParams)
SPARROW_CPU_KERNEL(lm_head_topk_cpu, LmHeadTopkParams)

// CUDA: a block takes this many tiles of 64 vocabulary rows: few enough lists for the merge, blocks enough to fill a
// GPU. 512: an H200 holds 132 SMs x 4 blocks at a time. 152064 rows: 5 tiles in 476 blocks; 32000 rows: 1 tile in 500.
constexpr int64_t kLmHeadTile = 64, kLmHeadLists = 512;
constexpr int64_t lm_head_tiles_per_block(int64_t vocab) {
  return ((vocab + kLmHeadTile - 1) / kLmHeadTile + kLmHeadLists - 1) / kLmHeadLists;
}
constexpr int64_t lm_head_lists(int64_t vocab) {
  const int64_t rows = lm_head_tiles_per_block(vocab) * kLmHeadTile;
  return (vocab + rows - 1) / rows;
}

// Rows whose logits are in memory at a time where the library multiplies: 39 MB at V = 152064 in bf16.
constexpr int64_t kLmHeadGemmRows = 128;
constexpr int64_t lm_head_align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
// The rows themselves, made dense, where there are more than the streaming kernel takes.
constexpr int64_t lm_head_dense_bytes(int64_t rows, int64_t width) {
  return rows > kSkinnyRows ? lm_head_align(product(rows, width, 4)) : 0;
}
constexpr int64_t lm_head_logit_bytes(int64_t rows, int64_t vocab) {
  return lm_head_align(product(rows < kLmHeadGemmRows ? rows : kLmHeadGemmRows, vocab, 4));
}
// Bytes of scratch for M rows on any backend and in any dtype, from an address that is a multiple of 16.
constexpr int64_t lm_head_topk_workspace_bytes(int64_t rows, int64_t width, int64_t vocab, int64_t k) {
  const int64_t few = rows < kSkinnyRows ? rows : kSkinnyRows, most = rows < kLmHeadGemmRows ? rows : kLmHeadGemmRows;
  const int64_t cpu = (vocab + kLmHeadChunk - 1) / kLmHeadChunk, cuda = lm_head_lists(vocab);
  const int64_t streaming =
      lm_head_align(packed_bytes(few, width)) + topk_partial_bytes(few, cpu > cuda ? cpu : cuda, k);
  const int64_t logits =
      lm_head_dense_bytes(rows, width) + lm_head_logit_bytes(rows, vocab) + topk_lse_workspace_bytes(most, vocab, k);
  return streaming > logits ? streaming : logits;
}

}  // namespace sparrow
