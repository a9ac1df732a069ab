// Counting, ranking and selecting inside one thread block of whole warps, up to 1024 threads. Every thread of the block
// calls each function; results are the same whatever the order in which threads run.
#pragma once
#include "kernels/portable.cuh"
#include "ops/common.h"

namespace sparrow {

constexpr int kMaxWarps = 32;

// Threads for n items: whole warps, no more than needed.
inline int block_threads(int64_t n) { return n >= 1024 ? 1024 : n <= 32 ? 32 : static_cast<int>((n + 31) / 32 * 32); }

struct Scan {
  int before, total;
};

// Exclusive sum over the block's warps; `count` is one number per warp. `per_warp` is shared, kMaxWarps long.
__device__ inline Scan scan_warps(int count, int* per_warp) {
  const int warp = static_cast<int>(threadIdx.x / 32), warps = static_cast<int>(blockDim.x / 32);
  __syncthreads();  // readers of the call before are done
  if (threadIdx.x % 32 == 0) per_warp[warp] = count;
  __syncthreads();
  Scan s{0, 0};
  for (int w = 0; w < warps; ++w) {
    if (w < warp) s.before += per_warp[w];
    s.total += per_warp[w];
  }
  return s;
}

// How many threads before this one, and in all, have `yes`.
__device__ inline Scan rank_threads(bool yes, int* per_warp) {
  const unsigned votes = __ballot_sync(~0u, yes), below = (1u << (threadIdx.x % 32)) - 1;
  Scan s = scan_warps(__popc(votes), per_warp);
  s.before += __popc(votes & below);
  return s;
}

// How many i < n have yes(i).
template <class F>
__device__ int64_t count_block(int64_t n, const F& yes) {
  int64_t count = 0;
  for (int64_t at = 0; at < n; at += blockDim.x) {
    const int64_t i = at + threadIdx.x;
    count += __syncthreads_count(i < n && yes(i));
  }
  return count;
}

constexpr int32_t kNever = INT32_MIN;  // below the key of every number

// Integers that compare as the floats do; NaN and -inf are kNever, -0 equals 0.
__device__ inline int32_t ordered_key(float x) {
  if (!(x > -INFINITY)) return kNever;
  const int32_t bits = static_cast<int32_t>(__float_as_uint(x + 0.f));
  return bits ^ ((bits >> 31) & INT32_MAX);
}

// The rank-th largest of key(0..n), 1 <= rank <= n: bisection of its 32 bits, each step one count. Unlike sorting this
// takes any n and needs no memory.
template <class Key>
__device__ int32_t threshold_block(int64_t n, int64_t rank, const Key& key) {
  int64_t low = kNever, high = INT32_MAX;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (count_block(n, [&](int64_t i) { return key(i) >= middle; }) >= rank) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return static_cast<int32_t>(low);
}

// Writes the indices of the `keep` best by (key descending, index ascending) to `selected`, in ascending order.
// 0 <= keep <= n; `selected` is shared; read it after this returns.
template <class Key>
__device__ void select_block(int64_t n, int64_t keep, const Key& key, int32_t* selected, int* per_warp) {
  if (keep > 0) {
    const int32_t lowest = threshold_block(n, keep, key);
    int64_t room = keep - count_block(n, [&](int64_t i) { return key(i) > lowest; });  // for keys equal to lowest
    int64_t taken = 0;
    for (int64_t at = 0; at < n && taken < keep; at += blockDim.x) {
      const int64_t i = at + threadIdx.x;
      const int32_t own = i < n ? key(i) : kNever;
      const bool equal = i < n && own == lowest;
      const Scan among_equal = rank_threads(equal, per_warp);
      const bool take = i < n && (own > lowest || (equal && among_equal.before < room));
      const Scan among_taken = rank_threads(take, per_warp);
      if (take) selected[taken + among_taken.before] = static_cast<int32_t>(i);
      room -= among_equal.total;
      taken += among_taken.total;
    }
  }
  __syncthreads();
}

}  // namespace sparrow
