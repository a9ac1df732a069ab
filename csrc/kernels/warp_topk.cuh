// A warp's running top-k, k <= 32: lane j holds the j-th best key, 0 = unused.
#pragma once
#include "kernels/logits.cuh"
#include "ops/topk_lse.h"

namespace sparrow {

// What is added to row r of a call; null = nothing.
__device__ __forceinline__ const float* bias_of(const LogitBias& b, int64_t r) {
  return b.data == nullptr ? nullptr : b.data + (b.first + r) / b.inner * b.stride;
}

// Inserts `key` (the same in all lanes), which is better than lane k - 1's.
__device__ __forceinline__ void warp_insert(uint64_t& list, uint64_t key, int k) {
  const int lane = threadIdx.x % 32;
  const int before = __popc(__ballot_sync(kAllLanes, list > key));
  const uint64_t shifted = __shfl_up_sync(kAllLanes, list, 1);
  list = lane >= k || lane < before ? list : lane == before ? key : shifted;
}

// Takes in kItems entries per lane: value[e] = ordered float (0 = nothing), its index index_of(e), ascending in e.
// Each round extracts the warp's best entry, until one is no better than the list's last. `value` is used up.
template <int kItems, class IndexOf>
__device__ __forceinline__ void warp_topk_fold(uint64_t& list, int k, uint32_t (&value)[kItems],
                                               const IndexOf& index_of) {
  for (;;) {
    uint32_t best = 0, at = 0;
#pragma unroll
    for (int e = 0; e < kItems; ++e)
      if (value[e] > best) {
        best = value[e];
        at = e;
      }
    const uint64_t mine = best == 0 ? 0 : pair_key(best, index_of(at));
    const uint64_t top = warp_max(mine);
    if (top <= __shfl_sync(kAllLanes, list, k - 1)) return;
    warp_insert(list, top, k);
    if (mine == top) {
#pragma unroll
      for (int e = 0; e < kItems; ++e) value[e] = e == static_cast<int>(at) ? 0 : value[e];
    }
  }
}

// The scale that brings a sum relative to `from` to one relative to `to` >= from; 0 where there was nothing.
__device__ __forceinline__ float rescale(float from, float to) { return from == -INFINITY ? 0.f : __expf(from - to); }
// e^(x - max): 0 for -inf and NaN. An infinite max gives anything but is never used: the result is then max itself.
__device__ __forceinline__ float exp_below(float x, float max) { return x > -INFINITY ? __expf(x - max) : 0.f; }

}  // namespace sparrow
