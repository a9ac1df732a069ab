// Ancestor words and depths of one tree, by pointer jumping: one warp, kMaxNodes / 32 nodes per lane. State per node in
// shared memory: its words, its depth and a pointer `up` to the nearest ancestor not yet folded in. A round folds the
// pointed-to node's words into ours and doubles the pointer; 7 rounds cover any path of 128 nodes. Reads and writes of
// a round are apart (two __syncwarp), so every lane sees the round before.
#pragma once
#include "kernels/portable.cuh"
#include "ops/common.h"

namespace sparrow {

constexpr int kMaxWords = kMaxNodes / kWordBits;

struct Ancestors {  // shared memory
  uint64_t words[kMaxNodes * kMaxWords];
  int depth[kMaxNodes];
  int up[kMaxNodes];
};

// Fills `a` for nodes [0, n); parent(i) outside [0, i) makes node i a root that sees itself only.
template <class Parent>
__device__ void warp_ancestors(Ancestors& a, int n, int lane, const Parent& parent) {
  constexpr int kPerLane = kMaxNodes / 32, kRounds = 7;
  for (int i = lane; i < n; i += 32) {
    const int up = parent(i);
    const bool ok = up >= 0 && up < i;
    a.up[i] = ok ? up : -1;
    a.depth[i] = ok ? 1 : 0;
    for (int w = 0; w < kMaxWords; ++w)
      a.words[i * kMaxWords + w] = i / kWordBits == w ? uint64_t{1} << (i % kWordBits) : 0;
  }
  __syncwarp();
  for (int round = 0; round < kRounds; ++round) {
    uint64_t more[kPerLane][kMaxWords];
    int add[kPerLane], next[kPerLane];
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const int i = lane + 32 * k, u = i < n ? a.up[i] : -1;
      for (int w = 0; w < kMaxWords; ++w) more[k][w] = u >= 0 ? a.words[u * kMaxWords + w] : 0;
      add[k] = u >= 0 ? a.depth[u] : 0;
      next[k] = u >= 0 ? a.up[u] : -1;
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const int i = lane + 32 * k;
      if (i >= n) continue;
      for (int w = 0; w < kMaxWords; ++w) a.words[i * kMaxWords + w] |= more[k][w];
      a.depth[i] += add[k];
      a.up[i] = next[k];
    }
    __syncwarp();
  }
}

}  // namespace sparrow
