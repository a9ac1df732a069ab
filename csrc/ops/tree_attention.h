// tree_attention: attention of the nodes of a draft tree over a long prefix and over the tree itself.
// Over the visible keys j:
//
//   s_j = scale q . k_j
//   out = sum_j exp(s_j) v_j / sum_j exp(s_j)
//   lse = log sum_j exp(s_j)
//
// Visible: the prefix, rows [0, len) of the cache (with a window only [0, anchors) and the last `window` of them), and
// the tree slots, rows len + j, of bits j of the node's words. No visible key: out 0, lse -inf.
//
// One pass over the keys, flash-attention style, in two kernels:
//   split    item (b, kv head, split, row tile): rows r = n G + g of one kv head (all G query heads of all nodes read a
//            key once) against the keys of one split -> unnormalised sum_j exp(s_j - m) v_j, m and sum_j exp(s_j - m).
//   combine  item (b, n, h): merges the splits in ascending order.
// Splits are cut at absolute key numbers 0, s, 2 s, ...: of the visible prefix, and the tree belongs to the split in
// which the prefix ends (CUDA), or of a row's own keys, the visible prefix and then the slots it sees (CPU). So a row's
// bits depend on its own keys only: not on B, N, max_prefix_len or the number of threads. On the CPU they depend on the
// sequence of these keys, be they cache rows or tree slots: a node of a tree gets the bits of its path decoded token by
// token. On CUDA they depend on the slots, too.
// draft_attention uses the same two kernels.
#pragma once
#include "ops/common.h"

namespace sparrow {

constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kSplitKeys = 1024;  // split size where the caller has no wish
constexpr int64_t kRowTile = 128;     // rows (nodes x query heads per kv head) of a split item

struct TreeAttentionParams {
  DType dtype;
  const void *q, *k, *v;  // q [B, N, H, D], k and v [B, S, K, D]; strides in elements, last dimension dense
  void* out;              // [B, N, H, D]
  float* lse;             // [B, N, H] contiguous, or null
  int64_t q_b, q_n, q_h, k_b, k_s, k_h, v_b, v_s, v_h, o_b, o_n, o_h;
  const int32_t* lens;        // [B]: prefix rows
  const int32_t* num_rows;    // [B]: nodes in use, or null = N
  const int32_t* tree_start;  // [B]: tree slots in the cache before those of these nodes, or null = 0
  const int64_t* anc;         // [B, N, words], or null = a chain: node i sees slots [0, tree_start + i]
  int64_t words;
  int64_t batch, nodes, heads, kv_heads, dim;
  float scale;
  int64_t window, anchors;         // window 0 = the whole prefix
  int64_t splits;                  // >= used_splits for every b; on CUDA kernels/attention_plan.h
  int64_t split_keys;              // keys of a split
  int64_t cache_rows, max_prefix;  // S, and the bound of lens that `splits` was chosen for
  bool zero_unused;                // nodes >= num_rows: out 0 and lse -inf, or left alone
  float* partial;                  // [B, splits, K, N G, padded_dim]
  float* stats;                    // [B, splits, K, N G, 2]: m, sum
  int32_t* error;                  // CUDA: the error word or null
};

// Prefix rows a node sees.
inline int64_t visible_prefix(const TreeAttentionParams& p, int64_t b) {
  const int64_t len = p.lens[b];
  return p.window > 0 && p.anchors + p.window < len ? p.anchors + p.window : len;
}
inline int64_t used_nodes(const TreeAttentionParams& p, int64_t b) {
  return p.num_rows == nullptr ? p.nodes : p.num_rows[b];
}
inline int64_t first_slot(const TreeAttentionParams& p, int64_t b) {
  return p.tree_start == nullptr ? 0 : p.tree_start[b];
}
// CPU: splits that hold keys of sequence b.
inline int64_t used_splits(const TreeAttentionParams& p, int64_t b) {
  const int64_t keys = visible_prefix(p, b) + first_slot(p, b) + used_nodes(p, b) - 1;
  return (keys > 0 ? keys : 0) / p.split_keys + 1;
}

constexpr int64_t padded_dim(int64_t dim) { return (dim + 15) / 16 * 16; }
inline int64_t attention_splits(int64_t max_prefix, int64_t split_keys) { return max_prefix / split_keys + 1; }
inline int64_t attention_row_tiles(int64_t rows) { return (rows + kRowTile - 1) / kRowTile; }
// Splits the scratch has room for, on either backend: the GPU cuts up to kScratchSplits pieces of 128 keys or more.
constexpr int64_t kScratchSplits = 33, kScratchSplitKeys = 128;
inline int64_t attention_scratch_splits(int64_t max_prefix, int64_t split_size) {
  if (split_size > 0) return attention_splits(max_prefix + kMaxNodes, split_size);
  const int64_t cpu = attention_splits(max_prefix + kMaxNodes, kSplitKeys),
                gpu = attention_splits(max_prefix, kScratchSplitKeys);
  return gpu < kScratchSplits ? gpu : cpu > kScratchSplits ? cpu : kScratchSplits;
}
// Bytes of partial and stats.
inline int64_t attention_workspace(int64_t batch, int64_t nodes, int64_t heads, int64_t dim, int64_t splits) {
  return product(batch, splits, nodes, heads, padded_dim(dim) + 2, sizeof(float));
}

SPARROW_CPU_KERNEL(tree_attention_split_cpu, TreeAttentionParams)
SPARROW_CPU_KERNEL(tree_attention_combine_cpu, TreeAttentionParams)

}  // namespace sparrow
