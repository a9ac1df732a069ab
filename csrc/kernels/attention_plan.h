// How tree_attention and draft_attention cut their work on a GPU: pure functions, each with the limit behind its
// number.
#pragma once
#include <cstdint>

#include "ops/tree_attention.h"

namespace sparrow {

constexpr int kTileKeys = kWordBits;  // keys of a tile; a tile of tree slots is one word per row
constexpr int kMmaHeadDim = 128;      // accumulators of 16 rows x 128 columns are 64 registers a thread

// Keys of a split where the caller has no wish: 1/kOwnSplits of the visible prefix, whole tiles. It follows from the
// row's own prefix alone, so a row's bits do not depend on B or on the bound of the lengths.
//   33: with 4 kv heads 132 blocks, one per SM of an H200 or H100 (an A100 has 108, two blocks fit); more splits would
//   write more bytes of partial results than they save waiting.
//   128: below two tiles a block cannot overlap loading with arithmetic.
constexpr int kOwnSplits = 33, kMinSplitKeys = 128;

// Lengths beyond this (split size, window, anchors) mean "all": kernels count keys in 32 bits.
constexpr int64_t kMostKeys = int64_t{1} << 30;

// `wish` > 0: the caller's split size.
constexpr int64_t attention_split_keys(int64_t prefix, int64_t wish) {
  if (wish > 0) return wish;
  const int64_t share = (prefix + kOwnSplits - 1) / kOwnSplits;
  const int64_t tiles = (share + kTileKeys - 1) / kTileKeys * kTileKeys;
  return tiles > kMinSplitKeys ? tiles : kMinSplitKeys;
}

// Splits that hold keys; at least 1. The tree belongs to the last one. Grows with the prefix, so its value for the
// longest prefix is the grid's size for all.
constexpr int64_t attention_used_splits(int64_t prefix, int64_t wish) {
  const int64_t keys = attention_split_keys(prefix, wish);
  return prefix > 0 ? (prefix + keys - 1) / keys : 1;
}
constexpr int64_t attention_grid_splits(int64_t max_prefix, int64_t wish) {
  if (wish > 0) return attention_used_splits(max_prefix, wish);
  const int64_t most = (max_prefix + kMinSplitKeys - 1) / kMinSplitKeys;
  return most < 1 ? 1 : most < kOwnSplits ? most : kOwnSplits;
}

// Which warps a block has.
//   few_rows  16 rows at most: four warps share the keys of a tile, or three of them would only load;
//   rows64    four warps of 16 rows, while one block holds all rows;
//   rows128   eight: half as many reads of K and V;
//   rows256   eight of 32 rows: again half as many, from shared memory too. More than 128 rows, where two stages fit.
// few_rows sums in another order, so with a caller's split size, which promises the same bits for any N, it is not
// used. The others give a row the same bits.
enum class AttentionFamily { few_rows, rows64, rows128, rows256 };

// Bytes of shared memory rows256 takes beside queries and stages: what its threads have no registers for.
constexpr int64_t kTightBytes = 128 + 2 * 256 * 16;

// `row_bytes`: of a row of queries, keys or values in shared memory. `limit`: see attention_stages.
constexpr AttentionFamily attention_family(int64_t rows, bool fixed_splits, int64_t row_bytes, int64_t limit) {
  if (rows <= 16 && !fixed_splits) return AttentionFamily::few_rows;
  if (rows <= 64) return AttentionFamily::rows64;
  const bool fits = kTightBytes + (256 + 2 * 2 * kTileKeys) * row_bytes <= limit;
  return rows > 128 && fits ? AttentionFamily::rows256 : AttentionFamily::rows128;
}

// Blocks meant to share an SM: at up to 255 registers a thread two of 4 warps fit the register file, one of 8 warps
// does.
constexpr int attention_blocks(int warps) { return warps == 4 ? 2 : 1; }

// Key tiles in flight: as many as fit, at most 4 (beyond that the memory system is full), at least 2. `limit`: bytes of
// shared memory a block may have (sm_89 and sm_120: 99 KiB, the least; 2 stages of head_dim 128 and 128 rows take 96).
// `fixed_bytes`: of all that is not a stage.
constexpr int attention_stages(int64_t fixed_bytes, int64_t stage_bytes, int blocks, int64_t limit) {
  for (int stages = 4; stages > 2; --stages)
    if ((fixed_bytes + stages * stage_bytes) * blocks <= limit) return stages;
  return 2;
}

static_assert(kOwnSplits <= kScratchSplits && kMinSplitKeys >= kScratchSplitKeys, "the scratch must hold all splits");

}  // namespace sparrow
