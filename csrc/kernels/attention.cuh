// The pieces tree_attention and draft_attention share on the GPU.
//   split    block (row tile, split, kv head, b): rows r = node G + g of one kv head against the keys of one split, in
//            tiles of 64 keys; unnormalised sum_j 2^(s_j - m) v_j, m and sum_j 2^(s_j - m) go to the workspace, with
//            scores in units of log 2. With one split in the grid the block writes the result itself.
//   combine  block (b, n, h): merges the splits; warps take splits in turn and are added in order.
// A block finds its keys from the lengths on the device (Work); a split without keys ends at once. A length or count
// out of range is clamped and sets kBadCount.
#pragma once
#include "kernels/attention_plan.h"
#include "kernels/error_word.cuh"
#include "kernels/portable.cuh"
#include "ops/draft_attention.h"

namespace sparrow {

// The matrix-unit path. `shared_limit`: bytes of shared memory a block may have on this device.
cudaError_t attention_mma_tree(const DraftAttentionParams& p, int64_t shared_limit, cudaStream_t stream);
cudaError_t attention_mma_draft(const DraftAttentionParams& p, int64_t shared_limit, cudaStream_t stream);
// Multiply-adds, any head_dim and alignment, q already roped and tree rows already in the cache; always combined after.
cudaError_t attention_plain(const TreeAttentionParams& p, cudaStream_t stream);
cudaError_t attention_combine(const TreeAttentionParams& p, cudaStream_t stream);

// Whether the matrix-unit path takes these shapes: 16-bit elements, 16-byte moves, accumulators that fit.
bool attention_mma_takes(const DraftAttentionParams& p, bool draft);

__device__ __forceinline__ int clamp_to(int64_t x, int64_t low, int64_t high) {
  return static_cast<int>(x < low ? low : x > high ? high : x);
}

// What sequence b holds, from the device's lengths; whatever they say, nothing beyond the cache is named.
struct Work {
  int used;       // nodes in use
  int len, text;  // prefix rows, and how many of them are visible: rows [0, cut) and [cut + gap, len)
  int cut, gap;   //
  int start;      // tree slots before those of these nodes
  int slots;      // tree slots in use
  int split_keys, last;

  __device__ __forceinline__ Work(const TreeAttentionParams& p, int b) {
    used = p.num_rows == nullptr ? static_cast<int>(p.nodes) : clamp_to(p.num_rows[b], 0, p.nodes);
    len = clamp_to(p.lens[b], 0, p.max_prefix < p.cache_rows ? p.max_prefix : p.cache_rows);
    start = p.tree_start == nullptr ? 0 : clamp_to(p.tree_start[b], 0, kMaxNodes - p.nodes);
    slots = clamp_to(start + used, 0, p.cache_rows - len);
    text = p.window > 0 && p.anchors + p.window < len ? static_cast<int>(p.anchors + p.window) : len;
    gap = len - text;
    cut = gap > 0 ? static_cast<int>(p.anchors) : text;
    split_keys = static_cast<int>(attention_split_keys(text, p.split_keys));
    last = static_cast<int>(attention_used_splits(text, p.split_keys)) - 1;
  }
  // Cache row of visible prefix key i, of tree slot j.
  __device__ __forceinline__ int64_t prefix_row(int i) const { return i + (i >= cut ? gap : 0); }
  __device__ __forceinline__ int64_t tree_row(int j) const { return static_cast<int64_t>(len) + j; }

  // Bits of word `w` that node n sees.
  __device__ __forceinline__ uint64_t word(const TreeAttentionParams& p, int b, int n, int w) const {
    if (p.anc == nullptr) return below(min(start + n + 1, slots), w);
    if (w >= p.words) return 0;
    return static_cast<uint64_t>(p.anc[(static_cast<int64_t>(b) * p.nodes + n) * p.words + w]) & below(slots, w);
  }
  // Bits of word w with a number < count.
  __device__ static __forceinline__ uint64_t below(int count, int w) {
    const int bits = count - w * kWordBits;
    return bits >= kWordBits ? ~uint64_t{0} : bits <= 0 ? 0 : (uint64_t{1} << bits) - 1;
  }
};

// What the CPU operators would refuse of sequence b's lengths and counts; one thread per sequence looks.
__device__ __forceinline__ void report_lengths(const TreeAttentionParams& p, int b) {
  if (p.error == nullptr || blockIdx.x != 0 || blockIdx.y != 0 || threadIdx.x != 0) return;
  const int64_t len = p.lens[b], start = p.tree_start == nullptr ? 0 : p.tree_start[b];
  const int64_t used = p.num_rows == nullptr ? p.nodes : p.num_rows[b];
  const bool lengths = len >= 0 && len <= p.max_prefix && start >= 0 && start + p.nodes <= kMaxNodes;
  report_if(!lengths || used < 0 || used > p.nodes || len + start + used > p.cache_rows, p.error, kBadCount);
}

// Row of partial and stats: split s of kv head `head`, packed row r.
__device__ __forceinline__ int64_t partial_row(const TreeAttentionParams& p, int b, int s, int head, int r) {
  return ((b * p.splits + s) * p.kv_heads + head) * (p.nodes * (p.heads / p.kv_heads)) + r;
}

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

}  // namespace sparrow
