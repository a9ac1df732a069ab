// tree_expand: one level of the EAGLE-2 draft tree.
// Candidate c = t k + j is token ids[b, t, j] below beam row t. Its score is the path's log-probability (NaN = -inf),
//
//   s[c] = min(beam_score[t], beam_score[t] + logp[t, j])
//
// so rounding never lets a child score above its parent. All T k candidates go to the history at `slot`: score, token,
// parent = beam_index[t] (-1 = the root). The best `beam` by (score descending, c ascending) are the next beam: rank r
// gets draft cache slot level * beam + r and
//
//   anc = beam_anc[t] | bit (level * beam + r)
//
// Slots: level 0 (T = 1) at 0, level l >= 1 (T = beam) at k + (l - 1) beam k, so a history index is above its parent's.
#pragma once
#include "ops/common.h"

namespace sparrow {

struct TreeExpandParams {
  const float* logp;                           // [B, T, k], last dimension dense
  const int64_t* ids;                          // [B, T, k], last dimension dense
  int64_t logp_batch, logp_row;                // strides in elements
  int64_t ids_batch, ids_row;                  // strides in elements
  const float* beam_score;                     // [B, T]
  const int32_t* beam_index;                   // [B, T], history index in [-1, slot)
  const int64_t* beam_anc;                     // [B, T, W]
  float* hist_score;                           // [B, C]
  int64_t* hist_id;                            // [B, C]
  int32_t* hist_parent;                        // [B, C]
  int64_t* token_ids;                          // [B, beam]
  int32_t* row_index;                          // [B, beam], b T + t
  float* score;                                // [B, beam], descending
  int32_t* index;                              // [B, beam], history index
  int64_t* anc;                                // [B, beam, W]
  int64_t batch, rows, k, beam, words, level;  // beam <= kMaxNodes and <= T k; (level + 1) beam <= 64 W
  int64_t slot, history;                       // slot + T k <= C = history
  int32_t* error;                              // CUDA: the error word or null
};

// One item = one sequence.
SPARROW_CPU_KERNEL(tree_expand_cpu, TreeExpandParams)

}  // namespace sparrow
